"""The messages and tools of a chat request, as OpenAI's API has them."""

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ftray.serve.openai.strict import Strict, unsupported


def _joined(value: object) -> object:
    """Join the parts of a content that is given as a list; only text is read."""
    if not isinstance(value, list):
        return value
    return "".join(_text(part) for part in value)


def _text(part: object) -> str:
    match part:
        case {"type": "text", "text": str(text), **rest} if not rest:
            return text
        case {"type": str(kind)} if kind != "text":
            raise unsupported(f"content of type '{kind[:40]}' is not supported: send text")
    raise PydanticCustomError("value_error", 'a part must be {"type": "text", "text": "…"}')


_CONTENT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                "required": ["type", "text"],
                "additionalProperties": False,
            },
        },
    ]
}
Content = Annotated[str, BeforeValidator(_joined), WithJsonSchema(_CONTENT_SCHEMA)]
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class _Turn(Strict):
    name: str | None = None  # handed to the template

    def rendered(self) -> dict[str, Any]:
        """Return the message as chat templates read it."""
        return self.model_dump(exclude_none=True)


class SystemMessage(_Turn):
    """Instructions."""

    role: Literal["system", "developer"]
    content: Content


class UserMessage(_Turn):
    """What the user says."""

    role: Literal["user"]
    content: Content


class FunctionCall(Strict):
    """A call of a function by the model; `arguments` is the text of a JSON object."""

    name: FunctionName
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _is_object(cls, value: str) -> str:
        try:
            tree = json.loads(value or "{}")
        except (ValueError, RecursionError):
            tree = None
        if not isinstance(tree, dict):
            raise ValueError("must be the text of a JSON object")
        return value or "{}"


class ToolCall(Strict):
    """One of the calls in an assistant's message."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class AssistantMessage(_Turn):
    """An earlier answer; fields that are empty in our own answers may be sent back."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] = Field(default_factory=list)
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[None], Field(max_length=0)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _has_something(self) -> "AssistantMessage":
        if self.content is None and not self.tool_calls:
            raise ValueError("an assistant's message needs 'content' or 'tool_calls'")
        return self

    def rendered(self) -> dict[str, Any]:
        """Return the message with arguments as objects, which templates write as JSON."""
        turn: dict[str, Any] = {"role": self.role, "content": self.content or ""}
        if self.name is not None:
            turn["name"] = self.name
        if self.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {
                        "name": call.function.name,
                        "arguments": json.loads(call.function.arguments),
                    },
                }
                for call in self.tool_calls
            ]
        return turn


class ToolMessage(_Turn):
    """What a tool has answered."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class Function(Strict):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    strict: bool = False

    def schema_of_arguments(self) -> dict[str, Any]:
        """Return the JSON schema of its arguments: an object, whatever the schema leaves open."""
        return {"type": "object", **self.parameters}


class Tool(Strict):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    """The name of a function."""

    name: FunctionName


class NamedTool(Strict):
    """A choice of one tool."""

    type: Literal["function"]
    function: NamedFunction

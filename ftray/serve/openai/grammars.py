"""What an answer's text is held to: a JSON object, a schema, or calls of tools."""

import asyncio

from llguidance import LLMatcher

from ftray.errors import DataError
from ftray.serve.openai.errors import INVALID, UNSUPPORTED, ApiError
from ftray.serve.openai.messages import Function, NamedTool
from ftray.serve.openai.requests import ChatRequest, ResponseFormat
from ftray.serve.openai.tools import (
    CallStyle,
    call_style,
    forced_grammar,
    guided_grammar,
    with_few_blanks,
)


async def format_grammar(asked: ResponseFormat) -> str | None:
    """Return the grammar of a response format; None: text. Raises ApiError for a bad schema."""
    if asked.json_schema is None:
        schema = {"type": "object"} if asked.type == "json_object" else None
    else:
        schema = asked.json_schema.schema_
    if schema is None:
        return None
    grammar = str(LLMatcher.grammar_from_json_schema(with_few_blanks(schema)))
    return await _checked(grammar, "response_format.json_schema.schema")


def style_of(template: str) -> CallStyle:
    """Return how a template has calls written; raises ApiError when its model can't call tools."""
    try:
        return call_style(template)
    except DataError as error:
        raise ApiError(UNSUPPORTED, f"tools: {error.message}", "tools") from None


async def tool_grammar(asked: ChatRequest, style: CallStyle) -> str | None:
    """Return the grammar that a choice of tools, or a strict tool, asks for; None: none does."""
    functions = [tool.function for tool in asked.tools]
    match asked.tool_choice:
        case NamedTool(function=named):
            chosen = [each for each in functions if each.name == named.name]
            if not chosen:
                message = f"tool_choice: no tool is called '{named.name}'"
                raise ApiError(INVALID, message, "tool_choice.function.name")
            return await _checked(forced_grammar(style, chosen, several=False), "tools")
        case "required":
            several = asked.parallel_tool_calls
            return await _checked(forced_grammar(style, functions, several=several), "tools")
    return await _guided(functions, style)


async def _guided(functions: list[Function], style: CallStyle) -> str | None:
    strict = [number for number, function in enumerate(functions) if function.strict]
    if not strict:
        return None
    if not style.open:
        where = f"tools.{strict[0]}.function.strict"
        message = f"{where}: this model's calls can be held to a schema only when they are required"
        raise ApiError(UNSUPPORTED, message, where)
    return await _checked(guided_grammar(style, functions), "tools")


async def _checked(grammar: str, param: str) -> str:
    """Compile it once, in a thread: a large schema takes a while."""
    problem = await asyncio.to_thread(LLMatcher.validate_grammar, grammar)
    if problem:
        raise ApiError(INVALID, f"{param}: the schema cannot be used: {problem[:500]}", param)
    return grammar

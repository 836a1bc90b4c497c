"""The base of all request bodies: nothing is converted, nothing is ignored, null is the default."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


class Strict(BaseModel):
    """A JSON object of which every field is known.

    Read with `model_validate_json`, which also refuses broken UTF-8, lone surrogates, NaN and
    absurd nesting. `not_supported` names fields of OpenAI's API that may only be null.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
    not_supported: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = cls.model_fields.keys() | cls.not_supported
        given = {key: item for key, item in value.items() if item is not None or key not in known}
        if refused := sorted(given.keys() & cls.not_supported):
            raise unsupported(f"'{refused[0]}' is not supported", refused[0])
        return given


def unsupported(message: str, field: str = "") -> PydanticCustomError:
    """Return the error of something that OpenAI's API has and this one has not."""
    # the text is no template: braces in it would be read as fields
    return PydanticCustomError("unsupported", "{message}", {"message": message, "field": field})

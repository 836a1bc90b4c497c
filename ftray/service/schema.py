"""What the OpenAPI schema says of the routes: their bodies and parameters are read by hand."""

from typing import Any

ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "An error: {'error': {'message', 'type', 'param', 'code'}}.",
        "content": {"application/json": {"schema": {"type": "object", "required": ["error"]}}},
    }
}
FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["purpose", "file"],
                    "properties": {
                        "purpose": {"type": "string", "enum": ["fine-tune"]},
                        "file": {"type": "string", "format": "binary"},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": 3600,
                            "maximum": 2592000,
                        },
                    },
                }
            }
        },
    }
}
PAGE = ("after", "limit")
_KINDS: dict[str, dict[str, Any]] = {
    "after": {"type": "string"},
    "limit": {"type": "integer", "minimum": 1},
    "order": {"type": "string", "enum": ["asc", "desc"]},
    "purpose": {"type": "string", "enum": ["fine-tune", "fine-tune-results"]},
    "metadata": {"type": "string"},
}


def parameters(*names: str) -> dict[str, Any]:
    """Return what the schema says of a route with these parameters in its query."""
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": _KINDS[name]}
            for name in names
        ]
    }


def body(name: str) -> dict[str, Any]:
    """Return what the schema says of a route with a JSON body."""
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}

"""Without an environment that holds vLLM, what is said tells how to get one."""

import asyncio

import pytest
import torch

from ftray.config.run import ModelConfig
from ftray.errors import ServeError
from ftray.serve.vllm.engine import VllmEngine
from ftray.serve.vllm.options import PYTHON_VARIABLE, VllmOptions


@pytest.mark.parametrize("python", [None, "/nowhere/bin/python"])
def test_an_engine_without_vllm_says_how_to_build_it(tiny_folder, monkeypatch, python):
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    model = ModelConfig(name=str(tiny_folder))
    engine = VllmEngine(tiny_folder, model, VllmOptions(python=python), torch.device("cpu"))
    with pytest.raises(ServeError, match=r"make \.venv-vllm"):
        asyncio.run(engine.start())

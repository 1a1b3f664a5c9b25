"""Run transformers' own common tests on this project's classes, offline and from this folder."""

import os
import sys
from pathlib import Path

import pytest

# The harness modules are imported by name from the tests of this folder.
sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# The downloaded files are mix-ins for the tests here, not tests of this project.
collect_ignore_glob = ["_peer/*"]


def pytest_configure(config: pytest.Config) -> None:
    """Make upstream's markers known: this project's settings refuse unknown ones."""
    names = ["torch_compile_test", "order", "is_agent_test", "is_staging_test", "is_training_test", "is_fsdp_test"]
    names += ["flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "torch_export_test", "generate"]
    names += ["accelerate_tests", "is_pipeline_test", "is_tensor_parallel_test", "is_expert_parallel_test"]
    for name in names:
        config.addinivalue_line("markers", f"{name}: of transformers' own tests")

"""What a recipe for Axolotl leaves open and the model or the device decides."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portllm.errors import InputError
from portllm.weights import attention

ATTENTION = "attn_implementation"
ATTENTION_FLAGS = (
    "flash_attention",
    "flex_attention",
    "sdp_attention",
    "xformers_attention",
    "sage_attention",
    "eager_attention",
)
"""Axolotl's older keys for the same setting."""
LORA_KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")
"""Axolotl's fused kernels for LoRA, which it compiles with Triton at the first step."""
HOPPER = (9, 0)
"""The first compute capability for which Axolotl accepts sdpa with packing in bfloat16."""
COMPILERS = ("cc", "gcc", "clang")


@dataclass(frozen=True)
class Device:
    """A GPU as far as recipes depend on it.

    Attributes:
        capability: CUDA's compute capability, such as (8, 0) for an A100.
        has_flash_attention: whether the package flash-attn is installed.
    """

    capability: tuple[int, int]
    has_flash_attention: bool = False


_CAPABILITY = """
import sys, torch
from portllm.errors import InputError
from portllm.jobs import torch_devices
try:
    torch_devices.check(single=False)
except InputError as error:
    sys.exit(str(error))
if torch.cuda.is_available():
    print(*torch.cuda.get_device_capability())
"""


def current_device() -> Device | None:
    """Return the first GPU that this process sees; asks another process, which CUDA would slow.

    None if torch can use none and `torch_devices.FALLBACK` allows that.

    Raises:
        InputError: torch cannot use the GPU.
    """
    answer = subprocess.run(
        [sys.executable, "-c", _CAPABILITY],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        reason = answer.stderr.strip().splitlines()[-1:]
        raise InputError(f"torch cannot use the GPU of this job: {' '.join(reason)}")
    if not answer.stdout.strip():
        return None
    major, minor = map(int, answer.stdout.split())
    return Device((major, minor), importlib.util.find_spec("flash_attn") is not None)


def complete(
    recipe: Mapping[str, Any], config: Mapping[str, Any], device: Device | None
) -> dict[str, Any]:
    """Return the recipe with attention and LoRA kernels set where it leaves them open.

    Axolotl would take sdpa, which does not compute Gemma-2's attention and may lose packed samples
    in bfloat16 before Hopper, and would switch on kernels that need a compiler.

    Args:
        recipe: the user's recipe with its overrides.
        config: config.json of the model to train.
        device: the GPU, or None to train on the CPU.

    Raises:
        InputError: the recipe asks for an attention or a kernel that computes another function
            than the model's, or the choice needs a compiler that is missing.
    """
    final = dict(recipe)
    model_type = config.get("model_type", "unknown")
    if not any(final.get(key) is not None for key in (ATTENTION, *ATTENTION_FLAGS)):
        final[ATTENTION] = _attention(final, config, device)
    _check_attention(final, config)
    if final.get("adapter"):
        if all(final.get(kernel) is None for kernel in LORA_KERNELS):
            final.update(dict.fromkeys(LORA_KERNELS, False))
        if final.get("lora_mlp_kernel") and model_type == "gemma2":
            raise InputError(
                "recipe: lora_mlp_kernel: found true, expected false for a gemma2 model: the "
                "kernel has the exact GELU, and Gemma-2 has the tanh approximation"
            )
    if device is not None:
        _check_compiler(final)
    return final


def _attention(recipe: Mapping[str, Any], config: Mapping[str, Any], device: Device | None) -> str:
    if attention.is_capped(config) or device is None:
        return attention.implementation(config)
    if device.has_flash_attention:
        return "flash_attention_2"
    in_bfloat16 = recipe.get("bf16") or recipe.get("bfloat16")
    if recipe.get("sample_packing") and in_bfloat16 and device.capability < HOPPER:
        return "flex_attention"
    return "sdpa"


def _check_attention(recipe: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    if not attention.is_capped(config):
        return
    named = [recipe[ATTENTION]] if recipe.get(ATTENTION) else []
    unfit = [name for name in named if name not in attention.SOFT_CAPPING]
    unfit += [key for key in ("sdp_attention", "xformers_attention") if recipe.get(key)]
    if unfit:
        raise InputError(
            f"recipe: {ATTENTION}: found {unfit[0]}, which leaves out the soft-capping of "
            f"{config.get('model_type')} models; expected "
            f"{', '.join(sorted(attention.SOFT_CAPPING))}"
        )


def _check_compiler(recipe: Mapping[str, Any]) -> None:
    """Raise InputError if the recipe needs Triton's compiler and the machine lacks it."""
    compiled = [kernel for kernel in LORA_KERNELS if recipe.get(kernel)]
    if recipe.get(ATTENTION) == "flex_attention" or recipe.get("flex_attention"):
        compiled.append("attn_implementation: flex_attention")
    if not compiled:
        return
    missing = [] if any(map(shutil.which, COMPILERS)) else ["a C compiler (gcc or clang)"]
    header = Path(sysconfig.get_path("include"), "Python.h")
    missing += [] if header.is_file() else [f"Python's headers ({header})"]
    if missing:
        raise InputError(
            f"recipe: {compiled[0]} compiles kernels on this machine, which lacks "
            f"{' and '.join(missing)}; install them, or set another {ATTENTION} or "
            "sample_packing: false and leave the lora_*_kernel keys out"
        )

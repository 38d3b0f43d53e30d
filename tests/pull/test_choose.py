"""Which version is fetched where none is named."""

from __future__ import annotations

import pytest

from llm_node.node import quantization_in
from llm_node.pull.choose import GIB, Choice, Figures, Machine, Need, Version, choose, may_fit, versions
from llm_node.pull.hub import File

BITS = {
    "IQ2_M": 2.7, "Q2_K": 3.0, "Q3_K_M": 3.9, "IQ4_XS": 4.25, "Q4_0": 4.55, "Q4_K_M": 4.85, "Q5_K_M": 5.7,
    "Q6_K": 6.6, "Q8_0": 8.5, "F16": 16.0,
}  # fmt: skip
LAYERS = {0.5: (24, 2, 64), 8: (36, 8, 128), 30: (48, 4, 128), 32: (64, 8, 128)}
"""Of models by billions of weights: layers, heads of keys, their width. The one of 30 has experts."""


def model(billions: float, *labels: str) -> tuple[list[Version], Figures, int]:
    parameters = int(billions * 10**9)
    found = [
        Version(label, (File(f"m-{label}.gguf", int(parameters * BITS[label.removeprefix("UD-")] / 8)),))
        for label in labels or BITS
    ]
    layers, heads, width = LAYERS[billions]
    per_token = layers * heads * width * 2 * 2
    size = found[0].size
    return found, Figures(size, Need(size, 0), Need(GIB // 2, 0), Need(per_token, 0)), parameters


def on_cpu(figures: Figures) -> Figures:
    def turned(need: Need) -> Need:
        return Need(0, need.gpu)

    return Figures(figures.size, turned(figures.weights), turned(figures.rest), turned(figures.per_token))


def with_gpu(room: int, host: int = 0) -> Machine:
    return Machine(Need(room, host), on_cpu=False, has_gpu_memory=True)


def chosen(
    billions: float, room_gib: float, *labels: str, cpu: bool = False, longest: int = 131_072
) -> Choice | None:
    found, figures, parameters = model(billions, *labels)
    room = int(room_gib * GIB)
    machine = Machine(Need(0, room), True, False) if cpu else with_gpu(room)
    return choose(found, on_cpu(figures) if cpu else figures, parameters, machine, longest)


@pytest.mark.parametrize(
    ("billions", "room", "label", "tokens"),
    [
        (0.5, 8, "Q8_0", 16_384),
        (8, 8, "Q4_K_M", 16_384),
        (8, 6, "Q4_0", 8_192),
        (8, 5.5, "Q3_K_M", 8_192),
        (8, 4.7, "Q3_K_M", 4_096),
        (8, 12, "Q8_0", 16_384),
        (8, 24, "Q8_0", 16_384),
        (30, 12, None, None),
        (30, 24, "Q5_K_M", 16_384),
        (30, 80, "Q8_0", 16_384),
        (32, 24, "Q4_K_M", 16_384),
        (32, 80, "Q8_0", 16_384),
    ],
)
def test_on_a_gpu(billions: float, room: float, label: str | None, tokens: int | None) -> None:
    choice = chosen(billions, room)
    if label is None:
        assert choice is None, "nothing fits well"
        return
    assert choice is not None
    assert (choice.version.label, choice.tokens) == (label, tokens)
    assert choice.need.gpu <= room * GIB


@pytest.mark.parametrize(
    ("billions", "room", "label"),
    [(0.5, 16, "Q8_0"), (8, 16, "Q4_K_M"), (30, 64, "Q4_K_M"), (32, 64, "Q4_K_M")],
)
def test_on_a_cpu_each_token_reads_all_weights(billions: float, room: float, label: str) -> None:
    choice = chosen(billions, room, cpu=True)
    assert choice is not None and choice.version.label == label


def test_where_nothing_fits_well_nothing_is_chosen() -> None:
    assert chosen(32, 8) is None
    assert chosen(8, 4, "Q2_K", "IQ2_M") is None, "below 3.3 bits only by name"


def test_the_only_form_there_is() -> None:
    found, figures, parameters = model(8, "F16")
    assert choose(found, figures, parameters, with_gpu(80 * GIB), None) is not None
    native = [Version("MXFP4", (File("m.gguf", int(parameters * 4.1 / 8)),))]
    assert choose(native, figures, parameters, with_gpu(80 * GIB), None) is not None


def test_of_equals() -> None:
    found, figures, parameters = model(8, "Q4_0", "UD-Q4_0")
    choice = choose(found, figures, parameters, with_gpu(24 * GIB), None)
    assert choice is not None and choice.version.label == "UD-Q4_0"


def test_a_short_model_is_chosen_for_its_own_length() -> None:
    choice = chosen(8, 12, longest=2048)
    assert choice is not None and choice.tokens == 2048


def test_what_would_be_better_is_told() -> None:
    choice = chosen(8, 8)
    assert choice is not None and choice.better is not None and choice.better_need is not None
    assert choice.better.label == "Q5_K_M"
    assert choice.better_need.gpu > choice.need.gpu
    best = chosen(0.5, 80, "Q4_0", "Q8_0")
    assert best is not None and best.better is None


def test_files_become_versions() -> None:
    names = {
        "a-Q8_0.gguf": 80, "a-Q4_K_M.gguf": 40, "a-UD-Q4_K_XL.gguf": 45, "mmproj-F16.gguf": 1,
        "imatrix.gguf": 1,
        "README.md": 1, "BF16/a-BF16-00001-of-00002.gguf": 90, "BF16/a-BF16-00002-of-00002.gguf": 70,
        "half-Q5_0-00001-of-00002.gguf": 1, "b-Q8_0.gguf": 81,
    }  # fmt: skip
    found = versions([File(name, size) for name, size in names.items()], quantization_in)
    assert [(version.label, version.size) for version in found] == [
        ("Q4_K_M", 40),
        ("UD-Q4_K_XL", 45),
        ("a-Q8_0", 80),
        ("b-Q8_0", 81),
        ("BF16", 160),
    ]
    assert [file.path for file in found[-1].files] == list(names)[6:8]


@pytest.mark.parametrize(
    ("billions", "room", "on_cpu", "fits"),
    [
        (8, 8, False, True),
        (32, 8, False, False),
        (32, 16, True, True),
        (None, 8, False, None),
        (8, 0, False, None),
    ],
)
def test_whether_it_may_fit_is_told_by_its_weights(
    billions: float | None, room: int, on_cpu: bool, fits: bool | None
) -> None:
    parameters = None if billions is None else int(billions * 10**9)
    machine = Machine(Need(0, room * GIB), True, False) if on_cpu else with_gpu(room * GIB, 64 * GIB)
    assert may_fit(parameters, machine) is fits


def test_what_is_taken_of_a_gpu_without_memory_of_its_own_is_the_hosts() -> None:
    found, figures, parameters = model(8, "Q4_K_M", "Q8_0")
    alone = choose(found, figures, parameters, with_gpu(8 * GIB), None)
    shared = Machine(Need(0, 8 * GIB), on_cpu=False, has_gpu_memory=False)
    assert alone is not None and choose(found, figures, parameters, shared, None) == alone
    assert may_fit(parameters, shared) is True and shared.bytes == 8 * GIB
    assert not shared.fits(Need(5 * GIB, 4 * GIB)), "both are the host's"

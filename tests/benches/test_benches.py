"""The benchmark's own parts: the method's arithmetic, the tables, and the models that it writes."""

from __future__ import annotations

import itertools
import random
import signal
import statistics
import subprocess
import sys
import xml.etree.ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.node import descendants_of, running_node, wait_for_ends

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benches.__main__ import earlier  # noqa: E402
from benches.client import Load, LoadError, Report, default_command  # noqa: E402
from benches.machine import Reading, listener  # noqa: E402
from benches.outcome import Goal, Measured, Outcome, Row, Unavailable, disturbed, throughput  # noqa: E402
from benches.ratio import Arena, Block, Options, check_equal_prompts  # noqa: E402
from benches.rows import against_guest, against_vllm  # noqa: E402
from benches.servers import Setup  # noqa: E402
from benches.table import ROWS  # noqa: E402

from benches import models, report, stats  # noqa: E402


def test_blocks_come_in_the_order_abba() -> None:
    order = itertools.chain.from_iterable(itertools.islice(stats.abba(), 4))
    assert "".join(order) == "ABBAABBA"


def test_a_steady_drift_of_the_machine_leaves_the_median_of_ratios_alone() -> None:
    clock = itertools.count()

    def block(side: str, _: int) -> stats.Sample[float]:
        speed = 1 - 0.01 * next(clock)  # each block is slower than the one before
        return stats.Sample((1.2 if side == "A" else 1.0) * speed, 0.0)

    pairs = stats.collect(8, stats.in_turns(block))
    ratio = stats.median([pair.a / pair.b for pair in pairs.values])
    assert ratio == pytest.approx(1.2, rel=2e-3)


def test_spoiled_pairs_are_measured_again() -> None:
    foreign = iter([0.0, 0.0, 0.2, 0.0, 0.0, 0.06, *[0.0] * 20])
    block = stats.in_turns(lambda side, index: stats.Sample(index, next(foreign)))
    pairs = stats.collect(3, block)
    assert [pair.a for pair in pairs.values] == [0, 3, 4]
    assert (pairs.thrown_away, pairs.spoiled) == (2, 0)


def test_a_machine_that_is_never_quiet_ends_the_row_with_its_best_samples() -> None:
    shares = [0.5, 0.4, 0.3, 0.2, 0.1, 0.04]
    samples = stats.collect(2, lambda index: stats.Sample(index, shares[index]))
    assert samples.values == [4, 5]
    assert (samples.thrown_away, samples.spoiled) == (4, 1)
    assert disturbed(samples, "runs") == [
        "4 more runs were thrown away because of other load",
        "1 of 2 runs were disturbed by other load",
    ]


def test_the_interval_holds_the_true_median_about_as_often_as_it_says() -> None:
    chance = random.Random(3)
    held = 0
    for trial in range(60):
        low, high = stats.bootstrap([chance.gauss(1.0, 0.1) for _ in range(12)], seed=trial)
        assert low <= high
        held += low <= 1.0 <= high
    assert held >= 50


def test_the_interval_of_equal_values_is_a_point() -> None:
    assert stats.bootstrap([1.5] * 8) == (1.5, 1.5)


def test_what_others_take_is_what_is_busy_and_not_ours() -> None:
    before, after = Reading(at=10.0, busy=100.0, steal=1.0), Reading(at=12.0, busy=103.0, steal=1.5)
    share = after.foreign_since(before, ours=2.0)
    assert share == pytest.approx((3.0 + 0.5 - 2.0) / (2.0 * cores()))
    assert after.foreign_since(before, ours=9.0) == 0.0  # clocks of different ticks


def cores() -> int:
    from benches.machine import CPUS

    return CPUS


def row(**changes: Any) -> Row:
    known = {
        "key": "decode",
        "title": "decode | all",
        "must": (Goal("ratio", 1.05),),
        "aim": (Goal("ratio", 1.15),),
        "measure": lambda arena: Outcome({}),
    }
    return Row(**{**known, **changes})


@pytest.mark.parametrize(("ratio", "met"), [(1.0, "no"), (1.05, "yes"), (1.2, "aim")])
def test_a_goal_is_met_or_not(ratio: float, met: str) -> None:
    assert report.verdict(row(), Outcome({"ratio": Measured.exact(ratio, "x")})) == met


def test_less_is_better_where_the_goal_says_so() -> None:
    latency = row(must=(Goal("ratio", 0.65, False),), aim=(Goal("ratio", 0.55, False),))
    assert report.verdict(latency, Outcome({"ratio": Measured.exact(0.6, "x")})) == "yes"
    assert report.verdict(latency, Outcome({"ratio": Measured.exact(0.7, "x")})) == "no"


MACHINE = {"processor": "A <processor>", "cores": 2, "gpu": None}


def record(
    outcome: Outcome | str, of: Row | None = None, commit: str | None = "abc", pairs: int = 8
) -> dict[str, Any]:
    provenance = {
        "machine": MACHINE,
        "versions": {
            "llm-node": "1",
            "commit": commit,
            "libllama": "crate 2",
            "llama-server": "llama.cpp b3",
        },
        "options": {"pairs": pairs, "block_seconds": 5.0},
    }
    return report.result(of or row(), outcome, provenance)


def test_the_tables_have_a_line_for_each_row_measured_or_not() -> None:
    figures = {"ratio": Measured(1.1, 1.05, 1.152, "x")}
    figures |= {
        f"{name} CPU": Measured.exact(us, "us") for name, us in (("llm-node", 30), ("llama-server", 40))
    }
    done = record(Outcome(figures, ["split"]))
    missing = record("no GPU", row(title="on a GPU"))
    lines = report.table([done, missing]).splitlines()
    assert [line.split()[0] for line in lines] == ["row", "decode", "on"]
    assert "1.10 x [1.05, 1.15]" in lines[1]
    assert lines[1].split()[-3:] == ["0.75", "\u00d7", "yes"]
    assert "no GPU" in lines[2]
    page = report.markdown([done, missing]).splitlines()
    assert all(line.count("|") - line.count("\\|") == len(report.HEADINGS) + 1 for line in page[:4])
    assert "2 cores" in page[-1]


def test_the_conditions_name_all_that_rows_were_measured_with() -> None:
    figures = {"ratio": Measured.exact(1.1, "x")}
    rows = [
        record(Outcome(figures)),
        record(Outcome(figures), commit=None, pairs=3),
        record("no GPU", commit="z"),
    ]
    said = report.conditions(rows)
    assert "commit abc, unknown;" in said
    assert "3 to 8 pairs of blocks of about 5 s" in said


def test_rows_of_another_machine_are_not_kept_beside_those_of_this_one(tmp_path: Path) -> None:
    report.write(tmp_path, [record(Outcome({"ratio": Measured.exact(1.1, "x")}))])
    assert list(earlier(tmp_path, MACHINE)) == ["decode"]
    assert earlier(tmp_path / "none", MACHINE) == {}
    with pytest.raises(SystemExit, match=r"A <processor>, 2 cores, no GPU; this one: .* a GPU"):
        earlier(tmp_path, {**MACHINE, "gpu": "a GPU"})


def test_the_results_that_are_kept_can_be_shown_and_are_of_one_machine_each() -> None:
    files = list((ROOT / "benches" / "results").glob("**/bench.json"))
    assert files
    for file in files:
        rows = report.read(file.parent)
        assert (file.parent / "bench.md").read_text(encoding="utf-8") == report.markdown(rows)
        assert len({report.place(one["machine"]) for one in rows}) == 1


def test_the_chart_is_xml_with_a_bar_for_each_ratio() -> None:
    faster = record(Outcome({"ratio": Measured(1.1, 1.05, 1.15, "x")}))
    latency = row(title="less", must=(Goal("ratio", 0.5, False),), aim=())
    less = record(Outcome({"ratio": Measured(0.25, 0.2, 0.3, "x")}), latency)
    other = record(Outcome({"RSS": Measured.exact(90, "MB")}), row(must=(), aim=()))
    root = xml.etree.ElementTree.fromstring(report.chart([faster, less, other]))  # noqa: S314
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "1.10" in texts and "4.00" in texts  # a quarter of the time is four times better
    assert sum(element.tag.endswith("rect") for element in root.iter()) == 3  # the ground and two bars


def test_every_goal_names_a_limit_and_rows_have_keys_of_their_own() -> None:
    assert len({each.key for each in ROWS}) == len(ROWS)
    for each in ROWS:
        assert each.must and each.aim, each.key


def block(prompt_tokens: int, may_fail: bool = False) -> Block:
    return Block([Report(Load(1, 1, 8, 8, may_fail=may_fail), {"prompt_tokens": prompt_tokens})], 0.0, 0.0)


def test_prompts_of_different_lengths_in_tokens_are_an_error() -> None:
    check_equal_prompts(block(50), block(50), "llama-server")
    with pytest.raises(LoadError, match="50 tokens for llm-node, 51 for llama-server"):
        check_equal_prompts(block(50), block(51), "llama-server")
    # What failed has no prompt that was read.
    check_equal_prompts(block(50, may_fail=True), block(40, may_fail=True), "llama-server")


TINY = models.Shape(layers=2, width=64, heads=4, kv_heads=2, hidden=96, vocab=1200, context=256)


def test_the_same_shape_gives_the_same_file(tmp_path: Path) -> None:
    first = models.write_random(tmp_path / "a.gguf", "tiny", TINY, "q8_0")
    second = models.write_random(tmp_path / "b.gguf", "tiny", TINY, "q8_0")
    assert first.read_bytes() == second.read_bytes()
    described = models.describe(first, "tiny")
    assert (described.vocab, described.layers) == (TINY.vocab, TINY.layers)
    assert described.cache_bytes_per_token == TINY.cache_bytes_per_token() == 2 * 2 * 2 * 16 * 2


def test_weights_of_both_kinds_have_the_deviation_that_they_claim() -> None:
    chance = models.np.random.Generator(models.np.random.PCG64(1))
    for quantisation, (kind, *_) in models.QUANTISATIONS.items():
        blocks = models.random_blocks(chance, 256, 256, quantisation)
        values = models.gguf.quants.dequantize(blocks, kind)
        assert values.shape == (256, 256)
        assert statistics.pstdev(values.ravel().tolist()) == pytest.approx(0.02, rel=0.05)


def test_the_node_serves_a_model_that_the_benchmark_wrote(tmp_path: Path, llama_cpp: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    for quantisation in models.QUANTISATIONS:
        models.write_random(folder / f"tiny-{quantisation}.gguf", "tiny", TINY, quantisation)
    arguments = ["--engines-dir", str(llama_cpp.parent.parent), "--gpu-backend", "cpu"]
    arguments += ["--models-dir", str(folder), "--demo-model", "no"]
    with running_node(tmp_path, arguments) as node:
        for quantisation in models.QUANTISATIONS:
            asked = {"model": f"tiny-{quantisation}", "max_tokens": 8, "ignore_eos": True, "temperature": 0}
            text = node.post("/v1/completions", {**asked, "prompt": "the cat sat"}).json()
            ids = node.post("/v1/completions", {**asked, "prompt": [1, 300, 301]}).json()
            chat = {**asked, "messages": [{"role": "user", "content": "the cat sat"}]}
            said = node.post("/v1/chat/completions", chat).json()
            assert text["usage"]["completion_tokens"] == 8, text
            assert text["choices"][0]["text"].isalpha() or " " in text["choices"][0]["text"], text
            # One token at the beginning, and words of few letters are single tokens.
            assert 4 <= text["usage"]["prompt_tokens"] <= 10
            assert ids["usage"]["prompt_tokens"] == 3
            assert said["usage"]["prompt_tokens"] > text["usage"]["prompt_tokens"]


def test_a_comparison_with_vllm_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(lambda backend: pytest.fail("nothing is built"), Options(1, 0.1, 1, ROOT, [], {}))
    for gpu, lack in ((None, "no GPU"), ("a GPU", "--vllm-url")):
        monkeypatch.setattr("benches.machine.gpu", lambda gpu=gpu: gpu)
        with pytest.raises(Unavailable, match=lack):
            against_vllm(arena)


def test_a_server_that_somebody_else_started_is_measured_by_turns_and_left_running(
    tmp_path: Path, llama_cpp: Path
) -> None:
    model = models.write_random(tmp_path / "models" / "tiny.gguf", "tiny", TINY, "q8_0")
    arguments = ["--engines-dir", str(llama_cpp.parent.parent), "--gpu-backend", "cpu", "--demo-model", "no"]
    with running_node(tmp_path, [*arguments, "--models-dir", str(model.parent)]) as other:
        options = Options(2, 0.1, 1, llama_cpp.parent.parent, default_command(), {}, quick=True)
        setup = Setup(models.describe(model, "tiny"), 1, 2, 256)
        arena = Arena(lambda backend: pytest.fail("no tools are needed"), options)
        load = Load(2, 2, 16, 8, temperature=0.8, filters={"top_k": 40, "top_p": 0.95, "min_p": 0.05})
        outcome = against_guest(arena, setup, load, "another", f"{other.url}/v1")
        with pytest.raises(LoadError, match="min_p"):  # what is asked for reaches the server
            against_guest(arena, setup, replace(load, filters={"min_p": 2}), "another", other.url)
        assert other.get("/healthz").status == 200
        assert listener(other.address[1]) == other.process.pid
    assert list(outcome.figures)[:3] == ["ratio", "llm-node", "another"]
    assert outcome.notes[-1] == f"another: tiny at {other.url}/v1"
    assert len(outcome.facts["ratios"]) == 2


def test_a_node_of_other_code_takes_the_place_of_llama_server(tmp_path: Path, llama_cpp: Path) -> None:
    model = models.write_random(tmp_path / "models" / "tiny.gguf", "tiny", TINY, "q8_0")
    other = Path(sys.executable).with_name("llm-node")
    options = Options(1, 0.1, 1, llama_cpp.parent.parent, default_command(), {}, quick=True, against=other)
    arena = Arena(lambda backend: pytest.fail("no tools are needed"), options)
    setup = Setup(models.describe(model, "tiny"), 1, 2, 256)
    comparison = arena.compare(setup, Load(2, 2, 16, 8), throughput, ceiling_every=1)
    assert (comparison.other, comparison.flavour) == (f"llm-node at {other}", None)
    assert (len(comparison.ratios(throughput)), comparison.ceilings) == (1, [])


@pytest.mark.skipif(sys.platform != "linux", reason="what processes take is read from /proc")
def test_the_program_measures_rows_and_leaves_json_a_table_and_a_chart(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benches", "--quick", "--output", str(tmp_path)]
    done = subprocess.run(
        [*command, "--rows", "node-memory,token-path"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    memory, path = report.read(tmp_path)
    assert 10 < memory["figures"]["RSS"]["value"] < 1000
    assert path["figures"]["per core"]["value"] > 1
    assert path["options"]["pairs"] == len(path["facts"]["foreign load"]) == 2
    table = (tmp_path / "bench.md").read_text(encoding="utf-8")
    assert memory["row"] in table and memory["row"] in done.stdout
    xml.etree.ElementTree.parse(tmp_path / "bench.svg")  # noqa: S314
    again = subprocess.run(
        [*command, "--rows", "node-memory", "--merge"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    after = report.read(tmp_path)
    assert after[1] == path
    assert after[0]["measured_at"] > memory["measured_at"]


@pytest.mark.skipif(sys.platform != "linux", reason="what processes take is read from /proc")
def test_what_is_measured_against_other_code_stands_in_no_table(tmp_path: Path) -> None:
    other = str(Path(sys.executable).with_name("llm-node"))
    command = [sys.executable, "-m", "benches", "--quick", "--output", str(tmp_path / "results")]
    done = subprocess.run(
        [*command, "--against", other, "--rows", "node-memory"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "    RSS: " in done.stderr
    assert not (tmp_path / "results").exists()


def test_whoever_ends_a_comparison_ends_its_servers(engines: Path, demo_model: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "benches.defaults", demo_model, "--parts", "bursts", "--engines-dir", engines],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process.stderr:
        try:
            said = process.stderr.readline()  # both nodes run by then, and a model is loaded
            assert "tokens for" in said, said + process.stderr.read()
            below = descendants_of(process.pid)
            assert len(below) >= 2
            process.terminate()
            assert process.wait(60) == 128 + signal.SIGTERM
            wait_for_ends(below)
        finally:
            process.kill()
            process.wait()

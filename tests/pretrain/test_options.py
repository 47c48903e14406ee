"""The command line: frozen flags, MoCo's and its fork's commands, launch flags, config files, and bad words of any
kind."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings, strategies as st

from moco.distributed.global_batch import GlobalBatch
from moco.errors import InputError
from moco.losses import OneProcess, WeightedLoss
from moco.losses.table import make_loss
from moco.pretrain.options import PretrainOptions, parse_pretrain
from moco.probe.depth.options import DepthOptions
from moco.probe.options import LinclsOptions, parse_lincls
from moco.run.flags import build_parser
from moco.run.options import RUNNING, as_dict, as_json, result_options

TABLE = Path(__file__).with_name("cli_flags.txt")
PARSERS: dict[str, Callable[[list[str]], Any]] = {"main_moco.py": parse_pretrain, "main_lincls.py": parse_lincls}


# -- frozen ------------------------------------------------------------------------------------------------------------


def flags() -> list[str]:
    """One line per flag of the mains and the depth probe: names, default, and whether it changes results."""
    lines = []
    for main, options in (
        ("main_moco.py", PretrainOptions), ("main_lincls.py", LinclsOptions), ("moco.probe.depth", DepthOptions),
    ):  # fmt: skip
        fields = {f.name: f for f in dataclasses.fields(options)}
        for action in build_parser(options, "")._actions:
            if action.dest != "help":
                names = " ".join(action.option_strings) or action.dest
                lines.append(f"{main} | {names} | {action.default!r} | {fields[action.dest].metadata['group']}")
    return lines


def test_flags_are_frozen() -> None:
    """Commands in people's scripts must go on to mean the same. A new flag needs a new line in cli_flags.txt; a line
    that changes or goes breaks somebody's command, and needs a better reason than taste."""
    frozen = [line for line in TABLE.read_text().splitlines() if line and not line.startswith("#")]
    assert flags() == frozen, "new lines: " + "\n".join(sorted({*flags()} - {*frozen}))


# facebookresearch/moco's parsers and its fork's: (spellings, default, words to try, their value).
MOCO_COMMON: list[tuple[str, Any, str, Any]] = [
    ("-a --arch", "resnet50", "resnet18", "resnet18"),
    ("-j --workers", None, "4", 4),
    ("--start-epoch", 0, "3", 3),
    ("-b --batch-size", 256, "512", 512),
    ("--momentum", 0.9, "0.8", 0.8),
    ("-p --print-freq", 10, "50", 50),
    ("--resume", None, "x.pth.tar", "x.pth.tar"),
    ("--seed", None, "1", 1),
]
MOCO_PRETRAIN = [
    ("--epochs", 200, "800", 800),
    ("--lr --learning-rate", 0.03, "0.06", 0.06),
    ("--schedule", [120, 160], "600 700", [600, 700]),
    ("--wd --weight-decay", 1e-4, "5e-4", 5e-4),
    ("--moco-dim", 128, "64", 64),
    ("--moco-k", 65536, "4096", 4096),
    ("--moco-m", 0.999, "0.99", 0.99),
    ("--moco-t", None, "0.2", 0.2),  # as resolved: 0.07, see below
    ("--mlp", False, "", True),
    ("--aug-plus", False, "", True),
    ("--cos", False, "", True),
]
FORK = [
    ("--moco-contr-tau", None, "0.1", 0.1),
    ("--moco-align-alpha", 2.0, "1", 1.0),
    ("--moco-unif-t", 3.0, "2", 2.0),
    ("--moco-unif-no-intra-batch", False, "", True),
    ("--moco-contr-w", None, "1", 1.0),  # as resolved: 1/0/0 or 0/3/1, see below
    ("--moco-align-w", None, "2", 2.0),
    ("--moco-unif-w", None, "0.5", 0.5),
]
MOCO_LINCLS = [
    ("--epochs", 100, "50", 50),
    ("--lr --learning-rate", 30.0, "10", 10.0),
    ("--schedule", [60, 80], "40 60 80", [40, 60, 80]),
    ("--wd --weight-decay", 0.0, "1e-5", 1e-5),
    ("-e --evaluate", False, "", True),
    ("--pretrained", None, "p.pth.tar", "p.pth.tar"),
]


@pytest.mark.parametrize(
    ("main", "spellings", "default", "words", "value"),
    [("main_moco.py", *row) for row in MOCO_COMMON + MOCO_PRETRAIN + FORK]
    + [("main_lincls.py", *row) for row in MOCO_COMMON + MOCO_LINCLS],
)
def test_mocos_flags(main: str, spellings: str, default: Any, words: str, value: Any) -> None:
    options = PretrainOptions if main == "main_moco.py" else LinclsOptions
    actions = {name: action for action in build_parser(options, "")._actions for name in action.option_strings}
    for spelling in spellings.split():
        dest = actions[spelling].dest
        if (main, dest) != ("main_lincls.py", "arch"):  # there the checkpoint's arch comes before resnet50
            assert actions[spelling].default == default
        o = PARSERS[main](["folder", spelling, *words.split()])
        assert getattr(o, dest) == value and o.data == "folder"


def test_main_lincls_falls_back_to_mocos_arch() -> None:
    assert parse_lincls(["folder"]).arch is None
    assert "else resnet50" in build_parser(LinclsOptions, "").format_help()


@pytest.mark.parametrize("options", [PretrainOptions, LinclsOptions, DepthOptions])
def test_help_says_each_default_once(options: type) -> None:
    text = build_parser(options, "").format_help()
    entries = [" ".join(entry.split()) for entry in re.split(r"\n  (?=-)", text)]
    twice = [entry for entry in entries if entry.count("default:") > 1 or "None" in entry or "default: )" in entry]
    assert len(entries) > 20 and not twice
    lr = next(entry for entry in entries if entry.startswith("--lr X"))
    assert f"(default: {build_parser(options, '').get_default('lr')})" in lr
    schedule = next(entry for entry in entries if entry.startswith("--schedule ["))
    assert re.search(r"\(default: [\d ]+\)", schedule)


def test_help_has_a_heading_for_each_topic() -> None:
    text = build_parser(PretrainOptions, "").format_help()
    headings = re.findall(r"^(\S.*):$", text, flags=re.MULTILINE)
    topics = ["data", "training", "encoder", "keys, queue and temperature", "loss", "augmentation"]
    assert headings == ["options", *(f"{topic} (changes results)" for topic in topics), RUNNING, "evaluation"]


# -- commands of others ------------------------------------------------------------------------------------------------

V1 = "-a resnet50 --lr 0.03 --batch-size 256 imagenet"
LINEAR = "-a resnet50 --lr 30.0 --batch-size 256 --pretrained c.pth.tar imagenet"
LAUNCH = "--dist-url tcp://localhost:10001 --multiprocessing-distributed --world-size 1 --rank 0"


def weights(o: PretrainOptions) -> tuple[float | None, ...]:
    return o.moco_contr_w, o.moco_align_w, o.moco_unif_w


def test_mocos_readme_v1() -> None:
    o = parse_pretrain(V1.split())
    assert (o.data, o.dataset, o.arch, o.lr, o.batch_size) == ("imagenet", "folder", "resnet50", 0.03, 256)
    assert (o.moco_dim, o.moco_k, o.moco_m, o.moco_t, o.mlp, o.recipe) == (128, 65536, 0.999, 0.07, False, "v1")
    assert (o.epochs, o.schedule, o.cos, o.momentum, o.weight_decay) == (200, [120, 160], False, 0.9, 1e-4)
    assert (o.loss, weights(o), o.image_size, o.warmup_epochs, o.amp) == ("infonce", (1, 0, 0), 224, 0, "off")
    assert (o.grad_clip, o.accum_steps, o.start_epoch, o.seed, o.resume) == (None, 1, 0, None, None)


def test_mocos_readme_v2() -> None:
    o, v1 = parse_pretrain([*V1.split(), "--mlp", "--moco-t", "0.2", "--aug-plus", "--cos"]), parse_pretrain(V1.split())
    changed = {name: value for name, value in as_dict(o).items() if value != as_dict(v1)[name]}
    assert changed == {"mlp": True, "moco_t": 0.2, "aug_plus": True, "recipe": "v2", "cos": True}


def test_mocos_readme_linear() -> None:
    o = parse_lincls(LINEAR.split())
    assert (o.data, o.arch, o.lr, o.batch_size, o.pretrained) == ("imagenet", "resnet50", 30, 256, "c.pth.tar")
    assert (o.epochs, o.schedule, o.weight_decay, o.momentum, o.evaluate) == (100, [60, 80], 0, 0.9, False)


@pytest.mark.parametrize(
    ("words", "loss", "expected"),
    [
        ("", "infonce", (1, 0, 0)),
        ("--loss infonce", "infonce", (1, 0, 0)),
        ("--loss align-uniform", "align-uniform", (0, 3, 1)),
        # weights without --loss are a command of the fork: the rest is 0/3/1
        ("--moco-align-w 3 --moco-align-alpha 2 --moco-unif-w 1 --moco-unif-t 3", "align-uniform", (0, 3, 1)),
        ("--moco-align-w 2", "align-uniform", (0, 2, 1)),
        ("--moco-unif-w 0.5", "align-uniform", (0, 3, 0.5)),
        ("--moco-contr-w 1 --moco-contr-tau 0.2 --moco-align-w 0 --moco-unif-w 0", "align-uniform", (1, 0, 0)),
        ("--moco-contr-w 1", "align-uniform", (1, 3, 1)),
        # with --loss, a weight changes its own alone
        ("--loss infonce --moco-unif-w 0.5", "infonce", (1, 0, 0.5)),
        ("--loss align-uniform --moco-contr-w 0.25", "align-uniform", (0.25, 3, 1)),
        ("--loss align-uniform --moco-unif-w 0", "align-uniform", (0, 3, 0)),
    ],
)
def test_weights_of_the_heads(words: str, loss: str, expected: tuple[float, float, float]) -> None:
    o = parse_pretrain(["folder", *words.split()])
    assert (o.loss, weights(o)) == (loss, expected)
    loss = make_loss(o)
    assert (loss.contr_w, loss.align_w, loss.unif_w) == expected


def test_the_head_is_what_the_options_say() -> None:
    words = (
        "--moco-contr-w 1 --moco-contr-tau 0.3 --moco-align-w 2 --moco-align-alpha 1.5 --moco-unif-w 4 --moco-unif-t 5"
    )
    loss = make_loss(parse_pretrain(["folder", *words.split(), "--moco-unif-no-intra-batch"]))
    assert loss == WeightedLoss(1.0, 0.3, 2.0, 1.5, 4.0, 5.0, False, loss.across) and isinstance(
        loss.across, OneProcess
    )
    ranks = GlobalBatch()
    assert isinstance(make_loss(parse_pretrain(["folder"]), ranks).across, OneProcess)
    assert make_loss(parse_pretrain(["folder", "--unif-global"]), ranks).across is ranks
    assert make_loss(parse_pretrain(["folder"])).intra_batch


def test_one_temperature_under_two_names() -> None:
    assert parse_pretrain(["f", "--moco-t", "0.2", "--moco-contr-tau", "0.3"]).moco_t == 0.3
    assert parse_pretrain(["f", "--moco-contr-tau", "0.3", "--moco-t", "0.2"]).moco_t == 0.2


@pytest.mark.parametrize("main", PARSERS)
@pytest.mark.parametrize(
    "words",
    [
        *("--multiprocessing-distributed", "--world-size 1", "--rank 0", "--dist-url tcp://localhost:10001"),
        *("--dist-backend nccl", "--gpu 0", "--gpu=0", "--gpus 0 1 2 3"),
        *(LAUNCH, f"-a resnet50 --lr 0.03 {LAUNCH} imagenet", f"imagenet {LAUNCH} --mlp"),
    ],
)
def test_launch_flags_show_the_torchrun_line(main: str, words: str) -> None:
    with pytest.raises(
        InputError, match=r"--[a-z-]+ was removed, because torchrun .* use: torchrun --nproc_per_node=8 "
    ) as caught:
        PARSERS[main](words.split())
    assert str(caught.value).split()[0] in words


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--moco-kk 5", r"unknown argument --moco-kk; did you mean --moco-k"),
        ("--learning-rates=3", r"unknown argument --learning-rates; did you mean --learning-rate"),
        ("--schedul 3", r"unknown argument --schedul; did you mean --schedule"),
        ("--aug-plu", r"unknown argument --aug-plu; did you mean --aug-plus"),  # an abbreviation could change meaning
        ("--qwertyuiop", r"unknown argument --qwertyuiop \(see --help\)"),
        ("second-folder", "unknown argument second-folder"),
    ],
)
def test_unknown_flags_show_near_ones(words: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        parse_pretrain(["folder", *words.split()])


# -- bad values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--moco-k -5", "--moco-k must be at least 0, not -5"),
        ("--moco-t 0", "--moco-t must be greater than 0, not 0"),
        ("--moco-t -0.1", "--moco-t must be greater than 0"),
        ("--moco-contr-tau 0", "--moco-t must be greater than 0"),
        ("--moco-t nan", "--moco-t must be greater than 0, not nan"),
        ("--lr inf", "--lr must be greater than 0, not inf"),
        ("--lr 0", "--lr must be greater than 0"),
        ("--moco-align-alpha 0", "--moco-align-alpha must be greater than 0"),
        ("--moco-unif-t -3", "--moco-unif-t must be greater than 0"),
        ("--moco-m 1.5", "--moco-m must be between 0 and 1, not 1.5"),
        ("--moco-m -0.5", "--moco-m must be between 0 and 1, not -0.5"),
        ("--moco-m nan", "--moco-m must be between 0 and 1, not nan"),
        ("--moco-m 0:0.9,5:1.5", "--moco-m must be between 0 and 1, not 1.5"),
        ("--moco-m 5:0.9,0:0.99", "is neither a number nor a curve of rising epochs"),
        ("--lr-per-step", "--lr-per-step works only with a warm-up or a cosine: pass --cos or --warmup-epochs too"),
        ("--moco-dim 0", "--moco-dim must be at least 1"),
        ("--epochs 0", "--epochs must be at least 1"),
        ("--batch-size 0", "--batch-size must be at least 1"),
        ("--accum-steps 0", "--accum-steps must be at least 1"),
        (
            "--batch-size 4 --accum-steps 5",
            "--batch-size 4 leaves some of 1 ranks × 5 accumulation steps without an image",
        ),
        ("--weight-decay -1", "--weight-decay must be at least 0"),
        ("--grad-clip 0", "--grad-clip must be greater than 0"),
        ("--seed -1", "--seed must be at least 0"),
        ("--seed 9223372036854775808", "--seed must be at least 0 and less than 2^63"),
        ("--image-size 0", "--image-size must be at least 1"),
        ("--moco-align-w 0 --moco-unif-w 0", "at least one must be positive; they are 0, 0, 0"),
        ("--moco-align-w -1", "must not be negative"),
        ("--loss simclr", "unknown --loss 'simclr'; did you mean simple"),
        ("--bn none", "argument --bn: invalid choice: 'none'"),
        ("--amp fp8", "argument --amp: invalid choice: 'fp8'"),
        ("--dataset mnist", "unknown --dataset 'mnist'; take one of folder, "),
        ("--epochs ten", "argument --epochs: invalid int value: 'ten'"),
        ("--lr", "argument --lr/--learning-rate: expected one argument"),
        ("--save-every 2x", "--save-every takes steps, as in 500, or minutes, as in 30m"),
    ],
)
def test_bad_values_name_their_flag(words: str, told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)) as caught:
        parse_pretrain(["folder", *words.split()])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("parse", PARSERS.values())
def test_data_are_asked_for(parse: Callable[[list[str]], Any]) -> None:
    for words in ([], ["--dataset", "imagenet100"]):
        with pytest.raises(InputError, match="say where the images are: a folder with train/ and val/"):
            parse(words)
    assert parse(["--dataset", "digits"]).data is None


def test_batch_must_reach_every_rank() -> None:
    with pytest.raises(InputError, match="--batch-size 7 leaves some of 8 ranks"):
        parse_pretrain(["folder", "-b", "7"], world_size=8)
    assert parse_pretrain(["folder", "-b", "8"], world_size=8).bn == "shuffle"
    assert parse_pretrain(["folder", "-b", "7"], world_size=1).bn == "split"


@pytest.mark.parametrize(
    ("words", "size", "recipe"),
    [
        ("folder", 224, "v1"),
        ("folder --aug-plus", 224, "v2"),
        ("--dataset digits", 32, "digits"),
        ("--dataset cifar10 x", 32, "cifar"),
        ("--dataset stl10 x", 64, "stl10"),
        ("--dataset stl10 --aug-plus x", 64, "v2"),
        ("--dataset stl10 --recipe simclr --image-size 96 x", 96, "simclr"),
    ],
)
def test_what_the_data_set_says(words: str, size: int, recipe: str) -> None:
    o = parse_pretrain(words.split())
    assert (o.image_size, o.recipe) == (size, recipe)


def test_output_folder_has_a_name_of_its_own() -> None:
    assert parse_pretrain(["f"]).output_dir == "runs/folder-resnet50-infonce"
    assert parse_pretrain(["f", "-a", "timm:resnet10t", "--loss", "align-uniform"]).output_dir == (
        "runs/folder-timm-resnet10t-align-uniform"
    )
    assert parse_pretrain(["f", "--output-dir", "x/y"]).output_dir == "x/y"


# -- config files ------------------------------------------------------------------------------------------------------


def config(folder: Path, text: str) -> list[str]:
    path = folder / "c.yaml"
    path.write_text(text)
    return ["--config", str(path)]


def test_config_sets_defaults_and_flags_override(tmp_path: Path) -> None:
    text = """
data: images
arch: resnet18
lr: 1e-1            # YAML reads this as a string; it is a number all the same
weight-decay: 0.0005
schedule: [10, 20]
mlp: true
cos: false
channels_last: false
tensorboard: true
moco_k: 128
seed: null
"""
    words = config(tmp_path, text)
    o = parse_pretrain(words)
    assert (o.data, o.arch, o.lr, o.weight_decay, o.schedule) == ("images", "resnet18", 0.1, 5e-4, [10, 20])
    assert (o.mlp, o.cos, o.channels_last, o.tensorboard, o.moco_k, o.seed) == (True, False, False, True, 128, None)
    o = parse_pretrain([*words, "--arch", "resnet50", "--schedule", "5", "--channels-last", "--moco-k=64", "other"])
    assert (o.arch, o.schedule, o.channels_last, o.moco_k, o.data) == ("resnet50", [5], True, 64, "other")
    assert (o.lr, o.mlp) == (0.1, True)
    assert parse_pretrain([words[0] + "=" + words[1]]).arch == "resnet18"


def test_the_resolved_options_are_a_config(tmp_path: Path) -> None:
    """options.json, which every run leaves, starts the same run again: JSON is YAML."""
    words = "f --moco-align-w 2 --schedule 1 2 --no-channels-last --bn local --seed 3 --save-every 5m"
    o = parse_pretrain([*words.split(), *config(tmp_path, "lr: 0.5")])
    again = parse_pretrain(config(tmp_path, as_json(o)))
    assert as_dict(again) == as_dict(o) and again.lr == 0.5
    assert json.loads(as_json(o)) == as_dict(o)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("moco_kk: 3", r"there is no option 'moco_kk'; did you mean moco_k"),
        ("lr: fast", r"c.yaml: argument --lr/--learning-rate: invalid float value: 'fast'"),
        ("loss: simclr", r"c.yaml: unknown --loss 'simclr'"),
        ("lr: true", r"'lr' takes a value, not true"),
        ("lr: [1, 2]", r"c.yaml: 'lr' takes one value, not \[1, 2\]"),
        ("data: [a, b]", r"c.yaml: 'data' takes one value"),
        ("arch: {a: b}", r"c.yaml: 'arch' takes one value"),
        ("mlp: 3", r"c.yaml: 'mlp' takes true or false, not 3"),
        ("tensorboard: maybe", r"c.yaml: 'tensorboard' takes true or false, not maybe"),
        ("epochs: 0", r"--epochs must be at least 1"),
        ("- a\n- b", r"must hold lines of the form 'option: value'"),
        ("just words", r"must hold lines of the form 'option: value'"),
        ("a: [1", r"is not valid YAML"),
        ("help: true", r"there is no option 'help'"),
    ],
)
def test_bad_config_files(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        parse_pretrain(["folder", *config(tmp_path, text)])
    assert "\n" not in str(caught.value)


def test_config_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(InputError, match=r"cannot read --config .*; give the path of a YAML file"):
            parse_pretrain(["folder", "--config", str(path)])
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="--config"):
        parse_pretrain(["folder", "--config", str(tmp_path / "binary")])
    assert parse_pretrain(["folder", *config(tmp_path, "")]).arch == "resnet50"


# -- what a resumed run is told about ----------------------------------------------------------------------------------


def test_options_that_change_results() -> None:
    names = set(result_options(PretrainOptions))
    assert {"data", "seed", "lr", "moco_t", "bn", "batch_size", "amp", "accum_steps", "recipe", "loss"} <= names
    assert not names & {"workers", "print_freq", "output_dir", "resume", "save_freq", "dry_run", "config", "eval_freq"}


def test_options_are_frozen() -> None:
    o = parse_pretrain(["folder"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        o.lr = 1.0  # type: ignore[misc]


# -- anything at all ---------------------------------------------------------------------------------------------------

PARSED_BY = [build_parser(options, "") for options in (PretrainOptions, LinclsOptions)]
known = st.sampled_from([name for p in PARSED_BY for action in p._actions for name in action.option_strings])
value = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        ["folder", "digits", "align-uniform", "auto", "split", "true", "", "-", "--", "=", "1e400", "-1", "30m"]
    ),
    st.text(max_size=8),
)
word = st.one_of(known, value, st.builds("{}={}".format, known, value))


@pytest.mark.parametrize("main", PARSERS)
@given(words=st.lists(word, max_size=6))
@example(words=["--dataset", "digits", "--seed", str(2**70)])
@example(words=["folder", "--moco-k", str(2**70)])
@settings(max_examples=120)
def test_any_words_give_options_or_one_sentence(main: str, words: list[str]) -> None:
    """An InputError, or 0 for --help; never a traceback, never argparse's own exit."""
    try:
        o = PARSERS[main](words)
    except InputError:
        return
    except SystemExit as end:
        code = end.code
        assert code == 0 and {"-h", "--help"} & set(words)
        return
    assert json.loads(as_json(o)) == as_dict(o)
    assert o.lr > 0 and o.batch_size >= 1 and o.epochs >= 1


settings_of_any_kind = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
names = st.sampled_from([f.name for f in dataclasses.fields(PretrainOptions)]) | st.text(max_size=6)


@given(content=st.dictionaries(names, settings_of_any_kind, max_size=4))
@settings(max_examples=60)
def test_any_config_gives_options_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(content))
    with contextlib.suppress(InputError):
        assert parse_pretrain(["folder", "--config", str(path)]).lr > 0

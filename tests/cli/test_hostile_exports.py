"""Another person's export can only compute: code planted in it does not run."""

import csv
import io
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import in_process
from torch import nn

from automl.export.export import _PREDICT, _copy_portable
from automl.portable.exported_program import Program
from automl.portable.operators import allowed
from automl.portable.predict import main

WIDTH = 3
RAN = "ran"


class Planted:
    """Leaves a trace when it is unpickled."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.ran), "w")


def saved(module: nn.Module, example: torch.Tensor, file: Path) -> None:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(module.eval(), (example,), dynamic_shapes=({0: batch},))
    torch.export.save(program, str(file))


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> Path:
    """The model of an export, as torch writes it."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("honest") / "model.pt2"
    saved(
        nn.Sequential(nn.Linear(WIDTH, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(4, WIDTH), file
    )
    return file


@pytest.fixture
def export(honest, tmp_path) -> Path:
    """An export that predicts from arrays."""
    directory = tmp_path / "export"
    directory.mkdir()
    shutil.copy(honest, directory)
    (directory / "predict.py").write_text(_PREDICT)
    _copy_portable(directory / "portable")
    np.save(tmp_path / "x.npy", np.ones((2, WIDTH), np.float32))
    return directory


Change = Mapping[str, bytes | Callable[[bytes], bytes]]


def rewrite(file: Path, changes: Change, compression: int = zipfile.ZIP_STORED) -> None:
    """Change or add members of the archive by the ends of their names."""
    with zipfile.ZipFile(file) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(held)).partition("/")[0]
    for end, change in changes.items():
        name = f"{root}/{end}"
        held[name] = change if isinstance(change, bytes) else change(held[name])
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in held.items():
            archive.writestr(name, content)


def edited(edit: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        data = json.loads(content)
        edit(data)
        return json.dumps(data).encode()

    return change


@pytest.fixture
def predict(export, capsys, monkeypatch) -> Callable[[], tuple[int, str, str]]:
    """Runs `automl predict` and `predict.py`, which must agree, and returns their result."""

    def predicted() -> tuple[int, str, str]:
        data = str(export.parent / "x.npy")
        ended = in_process(capsys, ("predict", str(export), data))
        monkeypatch.setattr(sys, "argv", ["predict.py", data])
        alone = main(export), *capsys.readouterr()
        assert alone == (ended.code, ended.out, ended.err)
        return alone

    return predicted


def in_its_own_process(export: Path) -> tuple[int, str, str]:
    """The result of the export's own `predict.py`."""
    command = [sys.executable, str(export / "predict.py"), str(export.parent / "x.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr


# Code that would run.
def pickled(ran: Path) -> bytes:
    return pickle.dumps(Planted(ran))


def torch_pickled(ran: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Planted(ran), buffer)
    return buffer.getvalue()


def weight(payload: bytes) -> Change:
    def edit(config: Any) -> None:
        next(iter(config["config"].values()))["use_pickle"] = True

    return {
        "data/weights/weight_0": payload,
        "data/weights/model_weights_config.json": edited(edit),
    }


def constant(kind: str, payload: bytes) -> Change:
    meta = {"path_name": f"{kind}_0", "is_param": False, "use_pickle": True, "tensor_meta": None}

    def edit(model: Any) -> None:
        argument = {"name": "c", "class_fqn": "builtins.object"}
        spec = {"custom_obj": {"arg": argument, "custom_obj_name": "c"}}
        model["graph_module"]["signature"]["input_specs"].insert(0, spec)

    return {
        f"data/constants/{kind}_0": payload,
        "data/constants/model_constants_config.json": json.dumps({"config": {"c": meta}}).encode(),
        "models/model.json": edited(edit),
    }


def expression(text: str) -> Change:
    def edit(model: Any) -> None:
        for meta in model["graph_module"]["graph"]["tensor_values"].values():
            for size in meta["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = text

    return {"models/model.json": edited(edit)}


def target(name: str, *arguments: Any) -> Change:
    def edit(model: Any) -> None:
        node = model["graph_module"]["graph"]["nodes"][0]
        node["target"] = name
        node["inputs"] = [{"name": "", "arg": each, "kind": 1} for each in arguments]

    return {"models/model.json": edited(edit)}


HARMLESS = {
    "sample inputs": lambda ran: {"data/sample_inputs/model.pt": torch_pickled(ran)},
    "raw sample inputs": lambda ran: {"data/sample_inputs/model.pt": pickled(ran)},
    "what torch never wrote": lambda ran: {"data.pkl": pickled(ran)},
    "an expression": lambda ran: expression(f"open({str(ran)!r}, 'w')"),
    "a hidden expression": lambda ran: expression(
        f"[c for c in ().__class__.__base__.__subclasses__()] and open({str(ran)!r}, 'w')"
    ),
}
"""Members planted where nothing reads them, so that the model predicts as before."""
REFUSED = {
    "a weight": lambda ran: weight(torch_pickled(ran)),
    "a custom object": lambda ran: constant("custom_obj", pickled(ran)),
    "an opaque object": lambda ran: constant("opaque_obj", pickled(ran)),
    "a file": lambda ran: target(
        "torch.ops.aten.from_file.default",
        *({"as_string": str(ran)}, {"as_bool": True}, {"as_int": 4}),
    ),
    "a function": lambda ran: target("os.system", {"as_string": f"touch {ran}"}),
    "a builtin": lambda ran: target("builtins.exec", {"as_string": f"open({str(ran)!r}, 'w')"}),
    "an operator": lambda ran: target("_operator.methodcaller", {"as_string": "touch"}),
    "an attribute": lambda ran: target("torch.ops.aten.add.__class__"),
    "a namespace": lambda ran: target("torch.ops.load_library", {"as_string": str(ran)}),
    "an output": lambda ran: target("torch.ops.aten.relu.out"),
}


def written_by(name: str) -> Callable[[Path], Change]:
    return lambda ran: target(f"torch.ops.aten.{name}")


REFUSED |= {
    name: written_by(name)
    for name in (
        *("max.dim_max", "topk.values", "sort.values", "sort.values_stable", "div.out_mode"),
        *("linalg_svd.U", "linalg_eigh.eigvals", "xlogy.OutTensor", "embedding_bag.padding_idx"),
        *("lstm.data", "gru.data", "view.dtype", "to.prim_dtype", "mul.left_t", "remainder.int"),
    )
}


@pytest.mark.parametrize("where", HARMLESS)
def test_unread_members_have_no_effect(export, predict, where):
    honest = predict()
    assert honest[0] == 0, honest
    ran = export.parent / RAN
    rewrite(export / "model.pt2", HARMLESS[where](ran))
    assert predict() == honest
    assert not ran.exists()


@pytest.mark.parametrize("where", REFUSED)
def test_code_in_an_export_is_refused_in_one_line(export, predict, where):
    ran = export.parent / RAN
    rewrite(export / "model.pt2", REFUSED[where](ran))
    code, out, err = predict()
    assert not ran.exists()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith(f"error: {export / 'model.pt2'} cannot be loaded (")


@pytest.mark.parametrize("made", [pickled, torch_pickled])
def test_a_pickle_instead_of_a_model_is_refused(export, predict, made):
    ran = export.parent / RAN
    (export / "model.pt2").write_bytes(made(ran))
    code, _, err = predict()
    assert (code, err.count("\n")) == (2, 1), err
    assert not ran.exists()


# Damaged models.
def sizes(**changes: Any) -> Change:
    def edit(config: Any) -> None:
        next(iter(config["config"].values()))["tensor_meta"].update(changes)

    return {"data/weights/model_weights_config.json": edited(edit)}


def nodes(edit: Callable[[Any], None]) -> Change:
    return {
        "models/model.json": edited(lambda model: edit(model["graph_module"]["graph"]["nodes"]))
    }


DAMAGED: dict[str, Change] = {
    "no JSON": {"models/model.json": b"{"},
    "another JSON": {"models/model.json": b"[]"},
    "no text": {"models/model.json": b"\xff"},
    "deep JSON": {"models/model.json": b"[" * 200_000},
    "no graph": {"models/model.json": b'{"schema_version": {"major": 8}}'},
    "another version": {"models/model.json": edited(lambda m: m["schema_version"].update(major=9))},
    "another order": {"byteorder": b"big"},
    "a short weight": {"data/weights/weight_0": b"1234"},
    "an empty weight": {"data/weights/weight_0": b""},
    "a weight beyond its end": sizes(storage_offset={"as_int": 10_000}),
    "a negative offset": sizes(storage_offset={"as_int": -8}),
    "a negative stride": sizes(strides=[{"as_int": -1}, {"as_int": 1}]),
    "a huge stride": sizes(strides=[{"as_int": 2**62}, {"as_int": 1}]),
    "a huge size": sizes(sizes=[{"as_int": 2**62}, {"as_int": 3}]),
    "an unknown dtype": sizes(dtype=99),
    "a path": {
        "data/weights/model_weights_config.json": lambda content: content.replace(
            b"weight_0", b"../../../../etc/passwd"
        )
    },
    "no nodes": nodes(lambda found: found.clear()),
    "an unknown name": nodes(
        lambda found: found[0]["inputs"][0]["arg"].update(as_tensor={"name": "?"})
    ),
    "an unknown argument": nodes(lambda found: found[0]["inputs"][0].update(arg={"as_magic": 1})),
    "too few arguments": nodes(lambda found: found[0]["inputs"].clear()),
    "text with orders": nodes(lambda found: found[0].update(target="\x1b]52;c;eA==\x07\nforged")),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_model_is_reported_in_one_line(export, predict, how):
    rewrite(export / "model.pt2", DAMAGED[how])
    code, out, err = predict()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert "model" in err
    assert "\x1b" not in err


@pytest.mark.parametrize("length", [0, 1, 100, 3000, -1])
def test_a_truncated_model_is_reported_in_one_line(export, predict, length):
    file = export / "model.pt2"
    file.write_bytes(file.read_bytes()[:length])
    code, out, err = predict()
    assert (code, out, err.count("\n")) == (2, "", 1), err


def test_a_compressed_model_is_refused(export, predict):
    rewrite(export / "model.pt2", {}, zipfile.ZIP_DEFLATED)
    code, _, err = predict()
    assert code == 2
    assert "is compressed" in err


def test_any_changed_byte_still_predicts_or_is_reported_in_one_line(honest, tmp_path):
    whole, draw = honest.read_bytes(), np.random.default_rng(0)
    file = tmp_path / "model.pt2"
    for place in draw.integers(0, len(whole), 300):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(draw.integers(0, 8))
        file.write_bytes(changed)
        try:
            Program(file)(torch.ones(2, WIDTH))
        except Exception as error:
            assert not isinstance(error, AssertionError | SystemError), error


# Arguments with which an allowed operation would read beyond its memory or end the process.
def test_no_operation_writes_to_an_argument_for_its_result():
    for schema in torch._C._jit_get_all_schemas():
        written = [a for a in schema.arguments if a.kwarg_only and a.alias_info]
        if schema.name.startswith("aten::") and any(a.alias_info.is_write for a in written):
            name = schema.name.removeprefix("aten::")
            with pytest.raises(ValueError, match="which exports may not call"):
                allowed(f"torch.ops.aten.{name}.{schema.overload_name or 'default'}")


def call(name: str, *args: Any, **kwargs: Any) -> Any:
    return allowed(f"torch.ops.aten.{name}")(*args, **kwargs)


LEAST = -(2**63)
VOLUME, PLANE = torch.ones(1, 1, 2, 2, 2), torch.ones(1, 1, 4, 4)
KEYS = torch.ones(1, 1, 400, 8)
BEYOND: dict[str, Callable[[], Any]] = {
    "magnitudes": lambda: call("_weight_norm.default", torch.ones(9, 3), torch.ones(1, 1), 0),
    "values": lambda: call("scaled_dot_product_attention.default", KEYS, KEYS, KEYS[:, :, :4]),
    "a mode": lambda: call("grid_sampler.default", PLANE, torch.zeros(1, 2, 2, 2), 7, 0, False),
    "a padding": lambda: call(
        "grid_sampler_2d.default", PLANE, torch.zeros(1, 2, 2, 2), 0, 7, True
    ),
    "a volume": lambda: call(
        "grid_sampler_3d.default", VOLUME, torch.zeros(1, 2, 2, 2, 3), 7, 0, True
    ),
    "a quotient": lambda: call(
        "div.Tensor_mode", torch.tensor([LEAST]), torch.tensor([-1]), rounding_mode="trunc"
    ),
    "a quotient in place": lambda: call(
        "div_.Tensor_mode", torch.tensor([LEAST]), torch.tensor([-1]), rounding_mode="floor"
    ),
    "a quotient by a number": lambda: call("floor_divide.Scalar", torch.tensor([LEAST]), -1),
    "a small quotient": lambda: call(
        "divide.Tensor_mode",
        *(torch.tensor([value], dtype=torch.int32) for value in (-(2**31), -1)),
        rounding_mode="trunc",
    ),
    "layers": lambda: call(
        "lstm.input",
        *(torch.ones(3, 4, 2), [torch.zeros(1, 4, 2)] * 2, [torch.ones(8, 2)] * 2),
        *(False, -1, 0.0, False, False, False),
    ),
    "a kind": lambda: call("zeros.default", [2], dtype=2**20),
    "a kind in its place": lambda: call("softmax.int", torch.ones(2), 0, 2**20),
    "a format": lambda: call("clone.default", torch.ones(2), memory_format=2**20),
    "a remainder": lambda: call("remainder.Scalar_Tensor", LEAST, torch.tensor([-1])),
    "a remainder by name": lambda: call("fmod_.Scalar", self=torch.tensor([LEAST]), other=-1),
}


@pytest.mark.parametrize("what", BEYOND)
def test_an_operation_checks_arguments_that_torch_does_not(what):
    says = r"expected|fit|mode|least|number|layers|mismatched shapes|divides"
    with pytest.raises(ValueError, match=says):
        BEYOND[what]()


EMPTY, ROW, COLUMN = torch.ones(0), torch.ones(1, 2**18), torch.ones(2**18, 1)
HUGE: dict[str, Callable[[], Any]] = {
    "the least exponent": lambda: call("linalg_matrix_power.default", torch.eye(2), LEAST),
    "the largest exponent": lambda: call("linalg_matrix_power.default", torch.eye(2), -LEAST - 1),
    "an exponent by name": lambda: call("linalg_matrix_power.default", torch.eye(2), n=LEAST),
    "repeats": lambda: call("repeat.default", torch.ones(2), [2**30, 2**30]),
    "many repeats": lambda: call("repeat.default", torch.ones(2**20), [2**12]),
    "repeats of nothing": lambda: call("repeat.default", EMPTY, [2**62]),
    "repeats of rows": lambda: call("repeat_interleave.self_int", torch.ones(2), 2**40, 0),
    "repeats by a tensor": lambda: call("repeat_interleave.Tensor", torch.tensor([2**40])),
    "tiles": lambda: call("tile.default", torch.ones(2), [2**40]),
    "an expansion": lambda: call("expand.default", torch.ones(1), [2**40]),
    "a broadcast": lambda: call("broadcast_to.default", torch.ones(1), [2**20, 2**20]),
    "strides of nothing": lambda: call("as_strided.default", torch.ones(1), [2**40], [0]),
    "a range": lambda: call("arange.default", 2**40),
    "a range from a start": lambda: call("arange.start", LEAST, -LEAST - 1),
    "small steps": lambda: call("arange.start_step", 0, 1, 1e-12),
    "an endless range": lambda: call("arange.default", float("inf")),
    "a range of no number": lambda: call("arange.start", 0.0, float("nan")),
    "zeros": lambda: call("zeros.default", [2**20, 2**20]),
    "a fill": lambda: call("full.default", [2**34], 1.0),
    "a square": lambda: call("eye.m", 2**20, 2**20),
    "a permutation": lambda: call("randperm.default", 2**33),
    "steps": lambda: call("linspace.default", 0.0, 1.0, 2**36),
    "classes": lambda: call("one_hot.default", torch.arange(2), 2**40),
    "classes by a number": lambda: call("one_hot.default", torch.tensor([0, 2**40])),
    "a count": lambda: call("bincount.default", torch.tensor([2**40])),
    "a least count": lambda: call("bincount.default", torch.tensor([1]), None, 2**40),
    "parts": lambda: call("tensor_split.sections", torch.ones(2), 2**40),
    "a border": lambda: call("constant_pad_nd.default", torch.ones(2, 2), [2**20] * 4),
    "a scale": lambda: call("upsample_nearest2d.vec", PLANE, None, [2.0**20, 2.0**20]),
    "a size": lambda: call("upsample_nearest2d.vec", PLANE, [2**20, 2**20], None),
    "a diagonal": lambda: call("diag_embed.default", torch.ones(2), 2**20),
    "combinations": lambda: call("combinations.default", torch.ones(64), 30),
    "products": lambda: call("outer.default", ROW[0], ROW[0]),
    "a sum of a row and a column": lambda: call("add.Tensor", ROW, COLUMN),
    "a product of a column and a row": lambda: call("mm.default", COLUMN, ROW),
    "a mesh": lambda: call("meshgrid.indexing", [ROW[0], ROW[0]], indexing="ij"),
    "copies of a view": lambda: call("cat.default", [torch.ones(1).expand(2**30)] * 3),
}


@pytest.mark.parametrize("what", HUGE)
def test_an_operation_refuses_huge_numbers(what):
    with pytest.raises(ValueError, match=r"more than [\d,]+$") as refused:
        HUGE[what]()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("linalg_matrix_power.default", {"as_int": LEAST}),
        ("repeat.default", {"as_ints": [2**31, 2**31]}),
        ("expand.default", {"as_ints": [2**31, 2, WIDTH]}),
    ],
)
def test_a_model_with_huge_numbers_is_reported_in_one_line(export, name, argument):
    def edit(model: Any) -> None:
        graph = model["graph_module"]["graph"]
        node, given = graph["nodes"][0], graph["inputs"][-1]
        node["target"] = f"torch.ops.aten.{name}"
        node["inputs"] = [{"name": "", "arg": each, "kind": 1} for each in (given, argument)]

    rewrite(export / "model.pt2", {"models/model.json": edited(edit)})
    code, out, err = in_its_own_process(export)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert "model.pt2 cannot be run (it " in err
    assert "more than " in err


def test_honest_numbers_are_computed():
    some = torch.arange(24.0).reshape(2, 3, 4)
    last = -LEAST - 1
    assert torch.equal(call("slice.Tensor", some, 1, LEAST, last), some)
    assert torch.equal(call("repeat.default", some, [2, 1, 1]), some.repeat(2, 1, 1))
    assert torch.equal(call("expand.default", some[:1], [5, -1, -1]), some[:1].expand(5, -1, -1))
    assert torch.equal(call("arange.start_step", 5, -5, -2), torch.arange(5, -5, -2))
    assert torch.equal(call("arange.default", 0), torch.arange(0))
    assert torch.equal(call("constant_pad_nd.default", some, [1, -2])[..., 1:], some[..., :2])
    assert call("masked_fill.Scalar", some, some > 3, LEAST).min() == LEAST
    square = torch.randn(3, 3, dtype=torch.float64)
    assert torch.equal(call("linalg_matrix_power.default", square, -5), square.matrix_power(-5))
    assert call("upsample_nearest2d.vec", PLANE, None, [2.0, 2.0]).shape == (1, 1, 8, 8)
    rows = torch.tensor([0, 2, 1])
    assert call("repeat_interleave.Tensor", rows).tolist() == [1, 1, 2]
    assert call("one_hot.default", rows).shape == (3, 3)


def test_an_lstm_reads_no_more_than_its_biases():
    weights = [torch.randn(8, 2), torch.randn(8, 2)]
    rest = (True, 1, 0.0, False, False, False)
    found = [
        call(
            "lstm.input",
            torch.ones(3, 4, 2),
            [torch.zeros(1, 4, 2)] * 2,
            [*weights, *biases],
            *rest,
        )
        for biases in ([torch.ones(8)] * 2, [torch.ones(1)] * 2)
    ]
    assert torch.equal(found[0][0], found[1][0])


def test_honest_divisions_are_computed():
    some = torch.tensor([7, -7, 2**40])
    for name in ("floor_divide.default", "remainder.Tensor", "fmod.Tensor"):
        packet, overload = name.split(".")
        expected = getattr(getattr(torch.ops.aten, packet), overload)(some, torch.tensor(-1))
        assert torch.equal(call(name, some, torch.tensor(-1)), expected)
    assert torch.equal(call("div.Tensor", some, torch.tensor(-1)), -some.float())
    assert call("remainder.Scalar_Tensor", 7, torch.tensor(4)) == 3


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("_operator.mul", ("ab", 2**40)),
        ("_operator.mul", ([1], 2**40)),
        ("_operator.mod", ("%999999999d", 1)),
        ("_operator.add", ("a", "b")),
        ("_operator.mul", (2**62, 2**62)),
        ("torch.sym_int", ("12",)),
        ("torch.sym_int", (1e300,)),
        ("torch.sym_max", ([2],)),
        ("torch.sym_ite", (True, "a", "b")),
    ],
)
def test_sizes_are_computed_from_numbers_only(name, values):
    with pytest.raises(ValueError, match="not 64-bit numbers"):
        allowed(name)(*values)


def test_sizes_are_computed():
    assert allowed("_operator.mul")(3, 4) == 12
    assert allowed("torch.sym_max")(3, 4.5) == 4.5
    assert allowed("torch.sym_ite")(False, 1, 2) == 2


def test_a_boolean_stored_as_another_byte_is_refused(tmp_path):
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([True, False, True]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(self.mask, x, 0.0)

    file = tmp_path / "model.pt2"
    saved(Masked(), torch.ones(4, WIDTH), file)
    assert Program(file)(torch.ones(1, WIDTH)).tolist() == [[1, 0, 1]]
    rewrite(file, {"data/weights/weight_0": b"\x01\x00\xff"})
    with pytest.raises(ValueError, match="are not booleans"):
        Program(file)


# Results.
class Everything(nn.Module):
    """Settings, constants, shared weights and other things that a graph may contain."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("hidden", torch.randn(4), persistent=False)
        self.constant = torch.tensor([1.0, 2.0, 3.0, 4.0])
        self.recurrent = nn.GRU(4, 5, batch_first=True, bidirectional=True)
        self.attention = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y = self.first(x) * self.hidden
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = self.second(y)
        left, right = torch.split(z.float() + self.constant, 2, -1)
        rest = self.attention(torch.cat([right, left], -1))
        found = self.recurrent(rest)[0]
        whole = found.reshape(x.shape[0] * found.shape[1], 10)
        return whole.view(x.shape[0], -1)[:, :7].clamp(min=-float("inf"))


class Last(nn.Module):
    """Returns a recurrent module's output at the last step."""

    def __init__(self, recurrent: nn.Module) -> None:
        super().__init__()
        self.recurrent = recurrent

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.recurrent(x)[0][:, -1]


class Sampled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        turned = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]).expand(x.shape[0], 2, 3)
        grid = nn.functional.affine_grid(turned, list(x.shape), align_corners=False)
        return nn.functional.grid_sample(x, grid, mode="bicubic", align_corners=False).flatten(1)


def images(*layers: nn.Module) -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(*layers), torch.randn(4, 2, 8, 8)


MODELS: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
    "everything": lambda: (Everything(), torch.randn(4, 3, 4)),
    "convolutions": lambda: images(
        nn.Conv2d(2, 6, 3, padding="same"),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(6, 4, 2, stride=2),
        nn.GroupNorm(2, 4),
        nn.SiLU(),
        nn.Upsample(scale_factor=2),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(16, 3),
    ),
    "weights over the last dimension": lambda: (
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 5), dim=1)),
        torch.randn(4, 3),
    ),
    "memory": lambda: (Last(nn.LSTM(3, 5, 2, batch_first=True, proj_size=2)), torch.randn(4, 6, 3)),
    "a grid": lambda: (Sampled(), torch.randn(4, 2, 8, 8)),
    "steps": lambda: (Last(nn.RNN(3, 5, 2, batch_first=True)), torch.randn(4, 6, 3)),
    "texts": lambda: (
        nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 9)),
        torch.randint(0, 9, (4, 3)),
    ),
    "normalised weights": lambda: (
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 5)), nn.Softplus()),
        torch.randn(4, 3),
    ),
    "no numbers": lambda: (nn.Sequential(nn.Linear(3, 0), nn.Linear(0, 2)), torch.randn(4, 3)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_it_computes_the_same_as_the_module(tmp_path, name):
    torch.manual_seed(0)
    module, example = MODELS[name]()
    saved(module, example, tmp_path / "model.pt2")
    program = Program(tmp_path / "model.pt2")
    with torch.no_grad():
        for inputs in (example, example[:1], torch.cat([example, example.flip(0)])):
            assert torch.allclose(program(inputs), module(inputs), atol=1e-5)


def test_the_file_in_the_export_predicts_the_same(export, predict):
    code, out, err = predict()
    assert (code, err) == (0, "")
    assert in_its_own_process(export) == (code, out, err)
    with torch.no_grad():
        expected = torch.export.load(str(export / "model.pt2")).module()(torch.ones(2, WIDTH))
    rows = [[float(cell) for cell in row] for row in list(csv.reader(io.StringIO(out)))[1:]]
    assert torch.allclose(torch.tensor(rows), expected, atol=1e-5)


def test_the_file_in_the_export_refuses_the_same(export, predict):
    ran = export.parent / RAN
    rewrite(export / "model.pt2", REFUSED["a weight"](ran))
    assert in_its_own_process(export) == predict()
    assert not ran.exists()

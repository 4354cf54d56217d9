"""The operator table: every operator by name, with the family file that describes it.

Adding an operator is an `OpSpec` in its family's SPECS plus its name here.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from halfbyte.errors import UnsupportedError

if TYPE_CHECKING:
    from halfbyte.ir.graph import Node
    from halfbyte.ir.ops.spec import OpSpec, ValueType

FAMILIES: dict[str, tuple[str, ...]] = {
    "activation": (
        *("Relu", "Sigmoid", "Tanh", "Erf", "Swish", "Gelu", "PRelu", "SwiGLU"),
        "halfbyte.SwiGLU",
    ),
    "attention": ("Attention", "TensorScatter"),
    "batch_normalization": ("BatchNormalization",),
    "bitwise": ("BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"),
    "cached_attention": ("halfbyte.CachedAttention",),
    "cast": ("Cast", "CastLike", "BitCast"),
    "channel_normalization": (
        *("InstanceNormalization", "GroupNormalization", "MeanVarianceNormalization"),
        *("LpNormalization", "LRN"),
    ),
    "constants": ("Constant", "ConstantOfShape", "Range"),
    "control_flow": ("If", "Loop", "Scan"),
    "convolution": ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv"),
    "cumulative": ("CumSum", "CumProd"),
    "depth_space": ("DepthToSpace", "SpaceToDepth"),
    "detection": ("NonMaxSuppression",),
    "dropout": ("Dropout",),
    "elementwise": (
        *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "And", "Or", "Xor", "Where"),
        *("Greater", "Less", "Equal", "GreaterOrEqual", "LessOrEqual"),
    ),
    "experts": ("halfbyte.ExpertLinear",),
    "features": tuple(
        f"ai.onnx.ml.{op}" for op in ("ArrayFeatureExtractor", "Binarizer", "LabelEncoder")
    ),
    "flex_attention": ("ai.onnx.preview.FlexAttention",),
    "fused": ("halfbyte.FusedConv", "halfbyte.FusedLinear"),
    "gather": ("Gather", "GatherElements", "GatherND", "Compress", "OneHot"),
    "grid_sampling": ("GridSample", "AffineGrid", "DeformConv", "Col2Im"),
    "image_decoder": ("ImageDecoder",),
    "integer": (
        *("halfbyte.IntegerConv", "halfbyte.IntegerMatMul", "halfbyte.IntegerAdd"),
        *("halfbyte.IntegerLookup", "halfbyte.IntegerLSTM"),
    ),
    "integer_matmul": ("MatMulInteger", "QLinearMatMul"),
    "linear_algebra": ("Einsum", "Det", "EyeLike"),
    "linear_attention": ("LinearAttention", "CausalConvWithState"),
    "loss": ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"),
    "matmul": (
        *("MatMul", "Gemm"),
        *("halfbyte.Linear", "halfbyte.LinearGroup", "halfbyte.LinearSwiGLU"),
    ),
    "ngrams": ("TfIdfVectorizer",),
    "normalization": (
        *("RMSNormalization", "LayerNormalization"),
        *("halfbyte.AddRMSNormalization", "halfbyte.AddLayerNormalization"),
    ),
    "optimizers": tuple(f"ai.onnx.preview.training.{op}" for op in ("Adagrad", "Adam", "Momentum")),
    "optional": ("Optional", "OptionalHasElement", "OptionalGetElement"),
    "ordering": ("TopK", "Unique", "NonZero"),
    "padding": ("Pad",),
    "piecewise": (
        *("LeakyRelu", "Elu", "Celu", "Selu", "HardSigmoid", "HardSwish", "Softplus", "Softsign"),
        *("Mish", "ThresholdedRelu", "Shrink"),
    ),
    "pooling": (
        *("MaxPool", "AveragePool", "LpPool", "MaxUnpool"),
        *("GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"),
    ),
    "quantization": ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
    "random": (
        *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        *("Bernoulli", "Multinomial"),
    ),
    "rearrangement": ("Transpose", "Expand", "Tile", "Trilu", "CenterCropPad", "ReverseSequence"),
    "recurrent": ("RNN", "GRU", "LSTM"),
    "reduction": (
        *("ReduceMax", "ReduceMin", "ReduceMean", "ReduceSum", "ReduceProd", "ReduceL1"),
        *("ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
        *("ArgMax", "ArgMin"),
    ),
    "region_pooling": ("RoiAlign", "MaxRoiPool"),
    "resize": ("Resize", "Upsample"),
    "rotary_embedding": ("RotaryEmbedding",),
    "scatter": ("Scatter", "ScatterElements", "ScatterND"),
    "selection": ("Concat", "Split", "Slice"),
    "sequence": (
        *("SequenceConstruct", "SequenceEmpty", "SequenceAt", "SequenceInsert", "SequenceErase"),
        *("SequenceLength", "ConcatFromSequence", "SplitToSequence", "SequenceMap"),
    ),
    "shape": ("Reshape", "Flatten", "Unsqueeze", "Squeeze", "Shape", "Size", "Identity"),
    "signal": (
        *("DFT", "STFT", "MelWeightMatrix"),
        *("HannWindow", "HammingWindow", "BlackmanWindow"),
    ),
    "softmax": ("Softmax", "LogSoftmax", "Hardmax"),
    "strings": ("StringConcat", "StringSplit", "StringNormalizer", "RegexFullMatch"),
    "trees": ("ai.onnx.ml.TreeEnsemble",),
    "trigonometry": (
        *("Sin", "Cos", "Tan", "Asin", "Acos", "Atan"),
        *("Sinh", "Cosh", "Asinh", "Acosh", "Atanh"),
    ),
    "unary": (
        *("Neg", "Abs", "Sign", "Ceil", "Floor", "Round", "Exp", "Log", "Sqrt", "Reciprocal"),
        *("IsInf", "IsNaN", "Not", "Clip"),
    ),
    "variadic": ("Min", "Max", "Sum", "Mean"),
}
OPS: dict[str, str] = {name: family for family, names in FAMILIES.items() for name in names}


def op_key(op: str, domain: str = "") -> str:
    """Return the name in OPS; `ai.onnx` and the empty domain are the same."""
    return op if domain in ("", "ai.onnx") else f"{domain}.{op}"


@cache
def op_specs(key: str) -> tuple[OpSpec, ...]:
    """Return the specs of the operator called `key`, one for each form, the newest last.

    Raises:
        UnsupportedError: the table does not have it.
    """
    if key not in OPS:
        from difflib import get_close_matches

        near = get_close_matches(key, OPS, n=3) or sorted(OPS)
        raise UnsupportedError(f"operator {key!r}", "graph", near)
    module: Any = import_module(f"halfbyte.ir.ops.{OPS[key]}")
    found = [spec for spec in module.SPECS if spec.key == key]
    return tuple(sorted(found, key=lambda spec: spec.versions[-1]))


@cache
def op_spec(key: str, version: int | None = None) -> OpSpec:
    """Return the spec that has since_version `version`; without one, or unknown, the newest.

    Raises:
        UnsupportedError: the table does not have the operator.
    """
    specs = op_specs(key)
    return next((spec for spec in specs if version in spec.versions), specs[-1])


def spec_of(node: Node) -> OpSpec:
    """Return the spec of a node's operator in the form of its version.

    Raises:
        UnsupportedError: the table does not have it.
    """
    return op_spec(op_key(node.op, node.domain), node.since_version)


@cache
def since_version(key: str, opset: int) -> int | None:
    """Return the version of an operator that an opset has, None where it has none yet.

    Raises:
        UnsupportedError: the table does not have the operator.
    """
    versions = [v for spec in op_specs(key) for v in spec.versions if v <= opset]
    return max(versions, default=None)


def infer(node: Node) -> list[ValueType]:
    """Return the types of a node's outputs.

    Raises:
        GraphError: the inputs or attributes break a rule of the operator.
    """
    return spec_of(node).infer(node)

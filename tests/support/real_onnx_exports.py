"""What `real_onnx.py` makes: networks, and how each is exported, quantized or rewritten."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from support.real_onnx import SEED, Exported, example_inputs, folder, trained_folder

IMAGE = ("image", (1, 3, 96, 96))


class Picked(nn.Module):
    """A transformers model that returns the named fields as a tuple."""

    def __init__(self, model: nn.Module, names: list[str], fields: list[str], **fixed: Any) -> None:
        super().__init__()
        self.model, self.names, self.fields, self.fixed = model, names, fields, fixed

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.model(**dict(zip(self.names, inputs, strict=True)), **self.fixed)
        return tuple(getattr(found, name) for name in self.fields)


class Voice(nn.Module):
    """Voice activity: a strided convolution as filter bank, convolutions, an LSTM with states."""

    def __init__(self) -> None:
        super().__init__()
        self.bank = nn.Conv1d(1, 130, 256, stride=64, padding=96, bias=False)
        widths = (65, 64, 32, 64)
        pairs = itertools.pairwise(widths)
        self.layers = nn.Sequential(
            *(m for a, b in pairs for m in (nn.Conv1d(a, b, 3, 2, 1), nn.ReLU()))
        )
        self.recurrent = nn.LSTM(64, 64, 2)
        self.head = nn.Conv1d(64, 1, 1)

    def forward(self, audio: torch.Tensor, state_h: torch.Tensor, state_c: torch.Tensor) -> Any:
        bands = self.bank(audio.unsqueeze(1))
        power = torch.sqrt(bands[:, :65] ** 2 + bands[:, 65:] ** 2 + 1e-9)
        hidden = self.layers(torch.log1p(power)).permute(2, 0, 1)
        mixed, (h, c) = self.recurrent(hidden, (state_h, state_c))
        return torch.sigmoid(self.head(mixed.permute(1, 2, 0))).mean(2), h, c


class Reader(nn.Module):
    """Text lines: convolutions with batch normalization, two-way LSTM and GRU, log softmax."""

    def __init__(self) -> None:
        super().__init__()
        widths, layers = (3, 16, 32, 64), []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.LeakyReLU(0.1)]
            layers += [nn.MaxPool2d((2, 2 if b < 64 else 1))]
        self.layers = nn.Sequential(*layers)
        self.first = nn.LSTM(64 * 4, 48, bidirectional=True)
        self.second = nn.GRU(96, 32, bidirectional=True)
        self.head = nn.Linear(64, 97)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        seen = self.layers(image).flatten(1, 2).permute(2, 0, 1)
        return torch.log_softmax(self.head(self.second(self.first(seen)[0])[0]), -1)


class Segments(nn.Module):
    """A mask: down, transposed convolution and resize up, instance norm, skips, PReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.InstanceNorm2d(16, affine=True))
        self.act = nn.PReLU(16)
        self.deep = nn.Conv2d(16, 24, 3, 2, 1, groups=8)
        self.group = nn.GroupNorm(4, 24)
        self.up = nn.ConvTranspose2d(24, 16, 4, 2, 1)
        self.last = nn.Conv2d(32, 2, 3, padding=2, dilation=2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        first = self.act(self.down(image))
        deep = nn.functional.hardswish(self.group(self.deep(first)))
        both = torch.cat([self.up(deep), first], 1)
        wide = nn.functional.interpolate(both, scale_factor=2, mode="bilinear", align_corners=False)
        return torch.softmax(self.last(nn.functional.pad(wide, (1, 1, 1, 1), "reflect")), 1)


class Boxes(nn.Module):
    """Detection: features at two scales, sigmoid scores, the best boxes by TopK and gather."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.SiLU(), nn.Conv2d(16, 32, 3, 2, 1))
        self.deep = nn.Sequential(nn.SiLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.SiLU())
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.head = nn.Conv2d(64, 9, 1)

    def forward(self, image: torch.Tensor) -> Any:
        fine = self.stem(image)
        coarse = self.pool(self.deep(fine))
        up = nn.functional.interpolate(coarse, scale_factor=2, mode="nearest")
        found = self.head(torch.cat([fine, up], 1)).flatten(2).transpose(1, 2)
        boxes, scores = found[..., :4].exp(), found[..., 4:].sigmoid()
        best, where = scores.max(-1).values.topk(20, 1)
        corners = torch.gather(boxes, 1, where.unsqueeze(-1).expand(-1, -1, 4))
        return corners.clamp(0, 10), best, where


def export(module: nn.Module, inputs: dict[str, Any], plan: Exported, path: Path) -> None:
    """Trace a module; `inputs` maps names to (shape, dynamic axes) or to tensors."""
    dynamic = plan.options.get("dynamic", {})
    torch.onnx.export(
        module.eval(),
        tuple(inputs.values()),
        str(path),
        dynamo=False,
        opset_version=plan.opset,
        input_names=list(inputs),
        dynamic_axes=dict.fromkeys(inputs, dynamic) if dynamic else None,
        do_constant_folding=True,
    )


def make_module(plan: Exported, path: Path) -> None:
    """Export one of the networks above."""
    torch.manual_seed(SEED)
    inputs = {name: torch.rand(shape) for name, shape in plan.options["inputs"].items()}
    module = plan.options["module"]()
    spread_weights(module)
    export(module, inputs, plan, path)


def spread_weights(module: nn.Module) -> None:
    """Draw weights and statistics so that values neither vanish nor grow with depth."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight.data)
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.5, 0.5)
            layer.running_var.uniform_(0.5, 1.5)


def make_transformer(plan: Exported, path: Path) -> None:
    """Export a transformers architecture with a small config and random weights."""
    import transformers

    torch.manual_seed(SEED)
    config = getattr(transformers, plan.options["config"])(**plan.options.get("sizes", {}))
    config._attn_implementation = plan.options.get("attention", "eager")
    model = getattr(transformers, plan.options["model"])(config)
    spread_weights(model)
    inputs = {
        name: torch.rand(shape) if name in ("image", "audio") else torch.ones(shape).long()
        for name, shape in plan.options["inputs"].items()
    }
    keywords = plan.options["keywords"]
    fixed = plan.options.get("fixed", {})
    export(Picked(model, keywords, plan.options["fields"], **fixed), inputs, plan, path)


def make_trained(plan: Exported, path: Path) -> None:
    """Export a trained checkpoint."""
    import transformers

    cls = getattr(transformers, plan.options["model"])
    model = cls.from_pretrained(
        trained_folder(plan.options["folder"]), attn_implementation="eager", dtype=torch.float32
    )
    names = plan.options["keywords"]
    inputs = {name: torch.ones((2, 12), dtype=torch.int64) for name in names}
    fixed = plan.options.get("fixed", {})
    export(Picked(model, names, plan.options["fields"], **fixed), inputs, plan, path)


def source_of(plan: Exported) -> Path:
    """Return the path of the model that this one is made from."""
    assert plan.source is not None
    path = folder() / f"{plan.source}.onnx"
    if not path.is_file():
        EXPORTED[plan.source].make(EXPORTED[plan.source], path)
    return path


class Samples:
    """Calibration inputs for onnxruntime's static quantizer."""

    def __init__(self, path: Path) -> None:
        self.left = [example_inputs(path, seed) for seed in range(4)]

    def get_next(self) -> Any:
        return self.left.pop() if self.left else None


def make_static(plan: Exported, path: Path) -> None:
    """Quantize activations and weights with onnxruntime's calibration."""
    from onnxruntime import quantization as q

    source = source_of(plan)
    with tempfile.TemporaryDirectory() as scratch:
        ready = Path(scratch) / "ready.onnx"
        q.quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
        q.quantize_static(
            str(ready),
            str(path),
            Samples(source),  # type: ignore[arg-type]
            quant_format=getattr(q.QuantFormat, plan.options["format"]),
            activation_type=getattr(q.QuantType, plan.options.get("activations", "QUInt8")),
            weight_type=getattr(q.QuantType, plan.options.get("weights", "QInt8")),
            per_channel=plan.options.get("per_channel", False),
            reduce_range=True,
        )


def make_dynamic(plan: Exported, path: Path) -> None:
    """Quantize weights; activations are quantized as they run."""
    from onnxruntime import quantization as q

    kind = getattr(q.QuantType, plan.options.get("weights", "QInt8"))
    per_channel = plan.options.get("per_channel", False)
    # Weights of 7 bits: without VNNI onnxruntime adds pairs of products in saturating int16.
    q.quantize_dynamic(
        str(source_of(plan)),
        str(path),
        weight_type=kind,
        per_channel=per_channel,
        reduce_range=True,
    )


def make_fused(plan: Exported, path: Path) -> None:
    """Store the graph as onnxruntime rewrites it, with its own operators."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    ort.InferenceSession(str(source_of(plan)), options, providers=["CPUExecutionProvider"])


def make_4bit(plan: Exported, path: Path) -> None:
    """Store matrix weights as MatMulNBits blocks."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model = onnx.load(source_of(plan))
    asymmetric = not plan.options.get("symmetric", False)
    maker = MatMulNBitsQuantizer(model, block_size=32, is_symmetric=not asymmetric)
    maker.process()
    onnx.save(maker.model.model, path)


def make_genai(plan: Exported, path: Path) -> None:
    """Build the decoder as onnxruntime-genai does, with a cache and 4-bit weights."""
    import onnx

    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-W", "ignore", "-m", "onnxruntime_genai.models.builder"]
        command += ["-i", str(trained_folder("decoder")), "-o", scratch, "-p", "int4", "-e", "cpu"]
        command += ["-c", str(Path(scratch) / "cache")]
        subprocess.run(command, check=True, capture_output=True, timeout=600)
        model = onnx.load(Path(scratch) / "model.onnx")
    # Activations stay float32; at the builder's level 4 onnxruntime rounds them to 8 bits.
    held = (a for node in model.graph.node for a in node.attribute)
    for attribute in held:
        if attribute.name == "accuracy_level":
            attribute.i = 1
    onnx.save(model, path)


TEXT = {0: "batch", 1: "sequence"}
BERT = ["input_ids", "attention_mask", "token_type_ids"]
VISION = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SPEECH = {"audio": (1, 4000)}

EXPORTED: dict[str, Exported] = {
    "resnet_op9": Exported(
        "vision, float",
        9,
        make_transformer,
        options={
            "config": "ResNetConfig",
            "model": "ResNetForImageClassification",
            "sizes": {
                "embedding_size": 32,
                "hidden_sizes": [32, 64, 96, 128],
                "depths": [2, 2, 2, 2],
                "layer_type": "basic",
            },
            "inputs": dict([IMAGE]),
            "keywords": ["pixel_values"],
            "fields": ["logits"],
        },
    ),
    "mobilenet_op12": Exported(
        "vision, float",
        12,
        make_transformer,
        options={
            "config": "MobileNetV2Config",
            "model": "MobileNetV2ForImageClassification",
            "sizes": {"depth_multiplier": 0.5, "image_size": 96},
            "inputs": dict([IMAGE]),
            "keywords": ["pixel_values"],
            "fields": ["logits"],
            "dynamic": {0: "batch"},
        },
    ),
    "convnext_op17": Exported(
        "vision, float",
        17,
        make_transformer,
        options={
            "config": "ConvNextConfig",
            "model": "ConvNextForImageClassification",
            "sizes": {"hidden_sizes": [24, 48, 64, 96], "depths": [1, 1, 2, 1]},
            "inputs": dict([IMAGE]),
            "keywords": ["pixel_values"],
            "fields": ["logits"],
        },
    ),
    "vit_op18": Exported(
        "vision, float",
        18,
        make_transformer,
        options={
            "config": "ViTConfig",
            "model": "ViTForImageClassification",
            "sizes": VISION | {"image_size": 96, "intermediate_size": 128},
            "inputs": dict([IMAGE]),
            "keywords": ["pixel_values"],
            "fields": ["logits"],
        },
    ),
    "segformer_op13": Exported(
        "vision, float",
        13,
        make_transformer,
        options={
            "config": "SegformerConfig",
            "model": "SegformerForSemanticSegmentation",
            "sizes": {"hidden_sizes": [16, 32, 48, 64], "decoder_hidden_size": 64},
            "inputs": dict([IMAGE]),
            "keywords": ["pixel_values"],
            "fields": ["logits"],
        },
    ),
    "segments_op11": Exported(
        "vision, float", 11, make_module, options={"module": Segments, "inputs": dict([IMAGE])}
    ),
    "boxes_op11": Exported(
        "vision, float", 11, make_module, options={"module": Boxes, "inputs": dict([IMAGE])}
    ),
    "reader_op10": Exported(
        "vision (text lines), float",
        10,
        make_module,
        options={"module": Reader, "inputs": {"image": (1, 3, 32, 160)}},
    ),
    "voice_op16": Exported(
        "speech, float",
        16,
        make_module,
        options={
            "module": Voice,
            "inputs": {"audio": (1, 4096), "state_h": (2, 1, 64), "state_c": (2, 1, 64)},
        },
    ),
    "wav2vec_op15": Exported(
        "speech, float",
        15,
        make_transformer,
        options={
            "config": "Wav2Vec2Config",
            "model": "Wav2Vec2ForCTC",
            "sizes": VISION
            | {
                "conv_dim": [64] * 7,
                "intermediate_size": 128,
                "num_conv_pos_embeddings": 16,
                "num_conv_pos_embedding_groups": 4,
            },
            "inputs": SPEECH,
            "keywords": ["input_values"],
            "fields": ["logits"],
        },
    ),
    "gpt2_op14": Exported(
        "text, float",
        14,
        make_transformer,
        options={
            "config": "GPT2Config",
            "model": "GPT2LMHeadModel",
            "sizes": {"n_embd": 96, "n_layer": 2, "n_head": 4, "vocab_size": 512},
            "inputs": dict.fromkeys(("input_ids", "attention_mask", "position_ids"), (2, 12)),
            "keywords": ["input_ids", "attention_mask", "position_ids"],
            "fields": ["logits"],
            "fixed": {"use_cache": False},
        },
    ),
    "minilm_op14": Exported(
        "text, float",
        14,
        make_trained,
        options={
            "model": "BertModel",
            "folder": "minilm",
            "keywords": BERT,
            "fields": ["last_hidden_state", "pooler_output"],
            "dynamic": TEXT,
        },
        trained=True,
    ),
    "decoder_op17": Exported(
        "text, float",
        17,
        make_trained,
        options={
            "model": "LlamaForCausalLM",
            "folder": "decoder",
            "keywords": ["input_ids", "attention_mask", "position_ids"],
            "fields": ["logits"],
            "fixed": {"use_cache": False},
        },
        trained=True,
    ),
    "resnet_qoperator": Exported(
        "vision, int8 QOperator", 11, make_static, "resnet_op9", {"format": "QOperator"}
    ),
    "convnext_qdq": Exported(
        "vision, int8 QDQ per channel",
        13,
        make_static,
        "convnext_op17",
        {"format": "QDQ", "per_channel": True},
    ),
    "voice_dynamic": Exported("speech, int8 dynamic", 16, make_dynamic, "voice_op16"),
    "minilm_dynamic": Exported(
        "text, int8 dynamic",
        14,
        make_dynamic,
        "minilm_op14",
        {"per_channel": True},
        trained=True,
    ),
    "minilm_qdq": Exported(
        "text, int8 QDQ", 14, make_static, "minilm_op14", {"format": "QDQ"}, trained=True
    ),
    "minilm_fused": Exported(
        "text, float, onnxruntime's operators", 14, make_fused, "minilm_op14", trained=True
    ),
    "resnet_fused_int8": Exported(
        "vision, int8, onnxruntime's operators", 11, make_fused, "resnet_qoperator"
    ),
    "decoder_4bit": Exported(
        "text, 4-bit MatMulNBits", 17, make_4bit, "decoder_op17", trained=True
    ),
    "decoder_genai": Exported(
        "text, 4-bit, onnxruntime-genai's builder", 22, make_genai, trained=True
    ),
}

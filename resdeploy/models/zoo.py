"""The model zoo: a literal table, and the way from a name to a description to a network.

The table needs no torch. Counts and accuracies are from the papers and from torchvision's own metadata; the tests
count every network again.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from resdeploy import packages
from resdeploy.errors import UnknownName, UsageError
from resdeploy.records import ModelSpec, Preprocessing

if TYPE_CHECKING:
    from torch import nn

HE = "He et al. 2015, arXiv:1512.03385"
XIE = "Xie et al. 2016, arXiv:1611.05431"
HE_2016 = "He et al. 2016, arXiv:1603.05027"
KRIZHEVSKY = "Krizhevsky et al. 2012, NIPS 25"
KRIZHEVSKY_2014 = "Krizhevsky 2014, arXiv:1404.5997"
SIMONYAN = "Simonyan & Zisserman 2014, arXiv:1409.1556"
SZEGEDY_2014 = "Szegedy et al. 2014, arXiv:1409.4842"
SZEGEDY_2015 = "Szegedy et al. 2015, arXiv:1512.00567"
SZEGEDY_2016 = "Szegedy et al. 2016, arXiv:1602.07261"
ZAGORUYKO = "Zagoruyko & Komodakis 2016, arXiv:1605.07146"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One variant. `params` and `macs` are at the default input and number of classes, batch 1.

    Multiply-accumulates of convolutions and the linear layer, padding taps counted; learnable parameters, BN's
    gamma and beta included.
    """

    name: str
    family: str
    params: int
    macs: int
    features: int  # width of the linear layer's input
    paper: str
    size: int = 224  # height and width of the input
    stem: int = 64 * 7 * 7  # weights of the first convolution for each input channel
    centred: bool = False  # sees pixels from -1 to 1, as Google's networks do

    @property
    def cifar(self) -> bool:
        return self.size == 32

    @property
    def classes(self) -> int:
        return 10 if self.cifar else 1000

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (3, self.size, self.size)

    @property
    def published(self) -> tuple[Published, ...]:
        """Published accuracies, torchvision's first; () where nobody published one."""
        return tuple(p for p in PUBLISHED if p.name == self.name)

    def params_for(self, classes: int, channels: int) -> int:
        """Learnable parameters with another linear layer and another first convolution."""
        return self.params + (classes - self.classes) * (self.features + 1) + (channels - 3) * self.stem


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published accuracy in percent, and torchvision's file where there is one.

    torchvision writes the first eight hexadecimal digits of a file's SHA-256 into its name.
    """

    name: str
    top1: float
    top5: float | None
    source: str
    weights: str = ""  # imagenet1k_v1, imagenet1k_v2, or "": no file of ours
    file: str = ""
    resize: int = 256  # shorter side before the crop that the figure was taken with
    crop: int = 0  # its side, where it is not the network's input in the table, which MACs are of

    @property
    def one_crop(self) -> bool:
        """Taken with the centre crop alone; else as its paper did, often with ten."""
        return self.source.endswith("1 crop")


def _row(name: str, family: str, params: int, macs: int, features: int, paper: str, **more: Any) -> Entry:
    return Entry(name=name, family=family, params=params, macs=macs, features=features, paper=paper, **more)


def _cifar(name: str, family: str, params: int, macs: int, paper: str, features: int = 64) -> Entry:
    return _row(name, f"cifar-{family}", params, macs, features, paper, size=32, stem=16 * 3 * 3)


_ROWS = (
    _row("resnet18", "resnet", 11_689_512, 1_814_073_344, 512, HE),
    _row("resnet34", "resnet", 21_797_672, 3_663_761_408, 512, HE),
    _row("resnet50", "resnet", 25_557_032, 4_089_184_256, 2048, HE),
    _row("resnet101", "resnet", 44_549_160, 7_801_405_440, 2048, HE),
    _row("resnet152", "resnet", 60_192_808, 11_513_626_624, 2048, HE),
    _row("resnet50_v1", "resnet-v1", 25_557_032, 3_857_973_248, 2048, HE),
    _row("resnet101_v1", "resnet-v1", 44_549_160, 7_570_194_432, 2048, HE),
    _row("resnet152_v1", "resnet-v1", 60_192_808, 11_282_415_616, 2048, HE),
    _row("resnet18_a", "resnet", 11_515_688, 1_794_805_760, 512, HE),
    _row("resnet34_a", "resnet", 21_623_848, 3_644_493_824, 512, HE),
    _row("resnet18_c", "resnet", 12_043_816, 1_878_298_624, 512, HE),
    _row("resnet34_c", "resnet", 22_716_840, 3_830_747_136, 512, HE),
    _row("resnext50_32x4d", "resnext", 25_028_904, 4_230_479_872, 2048, XIE),
    _row("resnext101_32x8d", "resnext", 88_791_336, 16_414_015_488, 2048, XIE),
    _row("resnext101_64x4d", "resnext", 83_455_272, 15_460_270_080, 2048, XIE),
    _row("wide_resnet50_2", "wide-resnet", 68_883_240, 11_398_021_120, 2048, ZAGORUYKO),
    _row("wide_resnet101_2", "wide-resnet", 126_886_696, 22_753_050_624, 2048, ZAGORUYKO),
    _row("plain18", "plain", 11_515_688, 1_794_805_760, 512, HE),
    _row("plain34", "plain", 21_623_848, 3_644_493_824, 512, HE),
    _row("preresnet18", "preresnet", 11_687_848, 1_814_073_344, 512, HE_2016),
    _row("preresnet34", "preresnet", 21_796_008, 3_663_761_408, 512, HE_2016),
    _row("preresnet50", "preresnet", 25_549_480, 4_089_184_256, 2048, HE_2016),
    _row("preresnet101", "preresnet", 44_541_608, 7_801_405_440, 2048, HE_2016),
    _row("preresnet152", "preresnet", 60_185_256, 11_513_626_624, 2048, HE_2016),
    _row("preresnet200", "preresnet", 64_666_280, 15_007_481_856, 2048, HE_2016),
    _cifar("resnet20", "resnet", 269_722, 40_551_040, HE),
    _cifar("resnet32", "resnet", 464_154, 68_862_592, HE),
    _cifar("resnet44", "resnet", 658_586, 97_174_144, HE),
    _cifar("resnet56", "resnet", 853_018, 125_485_696, HE),
    _cifar("resnet110", "resnet", 1_727_962, 252_887_680, HE),
    _cifar("resnet1202", "resnet", 19_421_274, 2_829_238_912, HE),
    _cifar("resnet20_b", "resnet", 272_474, 40_813_184, HE),
    _cifar("resnet32_b", "resnet", 466_906, 69_124_736, HE),
    _cifar("resnet44_b", "resnet", 661_338, 97_436_288, HE),
    _cifar("resnet56_b", "resnet", 855_770, 125_747_840, HE),
    _cifar("resnet110_b", "resnet", 1_730_714, 253_149_824, HE),
    _cifar("resnet1202_b", "resnet", 19_424_026, 2_829_501_056, HE),
    _cifar("plain20", "plain", 269_722, 40_551_040, HE),
    _cifar("plain32", "plain", 464_154, 68_862_592, HE),
    _cifar("plain44", "plain", 658_586, 97_174_144, HE),
    _cifar("plain56", "plain", 853_018, 125_485_696, HE),
    _cifar("plain110", "plain", 1_727_962, 252_887_680, HE),
    _cifar("preresnet110", "preresnet", 1_727_962, 252_887_680, HE_2016),
    _cifar("resnet110_bn_after_add", "preresnet", 1_727_962, 252_887_680, HE_2016),
    _cifar("resnet110_relu_before_add", "preresnet", 1_727_962, 252_887_680, HE_2016),
    _cifar("resnet110_relu_only", "preresnet", 1_727_962, 252_887_680, HE_2016),
    _cifar("resnet164", "resnet", 1_704_154, 244_500_992, HE_2016, 256),
    _cifar("preresnet164", "preresnet", 1_703_258, 244_500_992, HE_2016, 256),
    _cifar("resnet164_bn_after_add", "preresnet", 1_703_258, 244_500_992, HE_2016, 256),
    _cifar("resnet164_relu_before_add", "preresnet", 1_704_154, 244_500_992, HE_2016, 256),
    _cifar("resnet164_relu_only", "preresnet", 1_704_154, 244_500_992, HE_2016, 256),
    _cifar("resnet1001", "resnet", 10_328_602, 1_487_849_984, HE_2016, 256),
    _cifar("preresnet1001", "preresnet", 10_327_706, 1_487_849_984, HE_2016, 256),
    _row("alexnet", "alexnet", 61_100_840, 714_188_480, 4096, KRIZHEVSKY_2014, stem=64 * 11 * 11),
    _row("alexnet2012", "alexnet", 60_965_224, 724_406_816, 4096, KRIZHEVSKY, size=227, stem=96 * 11 * 11),
    _row("vgg11", "vgg", 132_863_336, 7_609_090_048, 4096, SIMONYAN, stem=64 * 3 * 3),
    _row("vgg13", "vgg", 133_047_848, 11_308_466_176, 4096, SIMONYAN, stem=64 * 3 * 3),
    _row("vgg16", "vgg", 138_357_544, 15_470_264_320, 4096, SIMONYAN, stem=64 * 3 * 3),
    _row("vgg19", "vgg", 143_667_240, 19_632_062_464, 4096, SIMONYAN, stem=64 * 3 * 3),
    _row("vgg11_bn", "vgg", 132_868_840, 7_609_090_048, 4096, SIMONYAN, stem=64 * 3 * 3),
    _row("vgg13_bn", "vgg", 133_053_736, 11_308_466_176, 4096, SIMONYAN, stem=64 * 3 * 3),
    _row("vgg16_bn", "vgg", 138_365_992, 15_470_264_320, 4096, SIMONYAN, stem=64 * 3 * 3),
    _row("vgg19_bn", "vgg", 143_678_248, 19_632_062_464, 4096, SIMONYAN, stem=64 * 3 * 3),
    _row("googlenet", "inception", 6_624_904, 1_498_376_192, 1024, SZEGEDY_2014, centred=True),
    _row("googlenet2014", "inception", 6_998_552, 1_582_671_872, 1024, SZEGEDY_2014),
    _row("inception_v3", "inception", 23_834_568, 5_713_216_096, 2048, SZEGEDY_2015, size=299, stem=288, centred=True),
    _row("inception_v4", "inception", 42_679_816, 12_253_974_624, 1536, SZEGEDY_2016, size=299, stem=288, centred=True),
    # What bottlenecks are compared with (`cost --against basic`); no paper has them.
    _row("basic101", "basic", 41_869_096, 7_594_348_544, 512, ""),
    _row("basic152", "basic", 58_399_528, 11_524_935_680, 512, ""),
    _row("basic50_outer", "basic", 341_832_488, 55_507_943_424, 2048, ""),
)
ENTRIES: Mapping[str, Entry] = {entry.name: entry for entry in _ROWS}


# A network of bottlenecks -> as many basic blocks: of its outer widths, and of ResNet-34's. Beyond ResNet-50 the wide
# ones hold 2.6 GB and more, over the 2 GiB that an ONNX file can be.
COUNTERFACTUALS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("resnet50", "resnet50_v1", "resnext50_32x4d", "wide_resnet50_2"), ("basic50_outer", "resnet34")),
    **dict.fromkeys(("resnet101", "resnet101_v1", "resnext101_32x8d"), ("basic101",)),
    **dict.fromkeys(("resnext101_64x4d", "wide_resnet101_2"), ("basic101",)),
    **dict.fromkeys(("resnet152", "resnet152_v1"), ("basic152",)),
}


def _file(
    name: str, version: int, file_hash: str, top1: float, top5: float, resize: int = 256, stem: str = ""
) -> Published:
    return Published(
        name=name,
        top1=top1,
        top5=top5,
        source="torchvision, 1 crop",
        weights=f"imagenet1k_v{version}",
        file=f"{stem or name}-{file_hash}.pth",
        resize=resize,
    )


def _paper(name: str, top1_error: float, top5_error: float | None, source: str, crop: int = 0) -> Published:
    top5 = None if top5_error is None else round(100 - top5_error, 2)
    return Published(name=name, top1=round(100 - top1_error, 2), top5=top5, source=source, crop=crop)


PUBLISHED: tuple[Published, ...] = (
    _file("resnet18", 1, "f37072fd", 69.758, 89.078, 256),
    _file("resnet34", 1, "b627a593", 73.314, 91.420, 256),
    _file("resnet50", 1, "0676ba61", 76.130, 92.862, 256),
    _file("resnet50", 2, "11ad3fa6", 80.858, 95.434, 232),
    _file("resnet101", 1, "63fe2227", 77.374, 93.546, 256),
    _file("resnet101", 2, "cd907fc2", 81.886, 95.780, 232),
    _file("resnet152", 1, "394f9c45", 78.312, 94.046, 256),
    _file("resnet152", 2, "f82ba261", 82.284, 96.002, 232),
    _file("resnext50_32x4d", 1, "7cdf4587", 77.618, 93.698, 256),
    _file("resnext50_32x4d", 2, "1a0047aa", 81.198, 95.340, 232),
    _file("resnext101_32x8d", 1, "8ba56ff5", 79.312, 94.526, 256),
    _file("resnext101_32x8d", 2, "110c445d", 82.834, 96.228, 232),
    _file("resnext101_64x4d", 1, "173b62eb", 83.246, 96.454, 232),
    _file("wide_resnet50_2", 1, "95faca4d", 78.468, 94.086, 256),
    _file("wide_resnet50_2", 2, "9ba9bcbe", 81.602, 95.758, 232),
    _file("wide_resnet101_2", 1, "32ee1156", 78.848, 94.284, 256),
    _file("wide_resnet101_2", 2, "d733dc28", 82.510, 96.020, 232),
    _file("alexnet", 1, "7be5be79", 56.522, 79.066, stem="alexnet-owt"),
    _file("vgg11", 1, "8a719046", 69.020, 88.628),
    _file("vgg13", 1, "19584684", 69.928, 89.246),
    _file("vgg16", 1, "397923af", 71.592, 90.382),
    _file("vgg19", 1, "dcbb9e9d", 72.376, 90.876),
    _file("vgg11_bn", 1, "6002323d", 70.370, 89.810),
    _file("vgg13_bn", 1, "abd245e5", 71.586, 90.374),
    _file("vgg16_bn", 1, "6c64b313", 73.360, 91.516),
    _file("vgg19_bn", 1, "c79401a0", 74.218, 91.842),
    _file("googlenet", 1, "1378be20", 69.778, 89.530),
    _file("inception_v3", 1, "0cc3c7bd", 77.294, 93.450, 342, stem="inception_v3_google"),
    _paper("resnet50_v1", 24.7, 7.8, "KaimingHe/deep-residual-networks, 1 crop"),
    _paper("resnet101_v1", 23.6, 7.1, "KaimingHe/deep-residual-networks, 1 crop"),
    _paper("resnet152_v1", 23.0, 6.7, "KaimingHe/deep-residual-networks, 1 crop"),
    _paper("resnet18_a", 27.88, None, "He et al. 2015, table 2, 10 crops"),
    _paper("resnet34_a", 25.03, 7.76, "He et al. 2015, table 3, 10 crops"),
    _paper("resnet34_c", 24.19, 7.40, "He et al. 2015, table 3, 10 crops"),
    _paper("plain18", 27.94, None, "He et al. 2015, table 2, 10 crops"),
    _paper("plain34", 28.54, 10.02, "He et al. 2015, table 3, 10 crops"),
    _paper("resnet20", 8.75, None, "He et al. 2015, table 6"),
    _paper("resnet32", 7.51, None, "He et al. 2015, table 6"),
    _paper("resnet44", 7.17, None, "He et al. 2015, table 6"),
    _paper("resnet56", 6.97, None, "He et al. 2015, table 6"),
    _paper("resnet110", 6.43, None, "He et al. 2015, table 6"),
    _paper("resnet1202", 7.93, None, "He et al. 2015, table 6"),
    _paper("resnet164", 5.93, None, "He et al. 2016, table 2"),
    _paper("preresnet110", 6.37, None, "He et al. 2016, table 2"),
    _paper("preresnet164", 5.46, None, "He et al. 2016, table 2"),
    _paper("resnet110_bn_after_add", 8.17, None, "He et al. 2016, table 2"),
    _paper("resnet164_bn_after_add", 6.50, None, "He et al. 2016, table 2"),
    _paper("resnet110_relu_before_add", 7.84, None, "He et al. 2016, table 2"),
    _paper("resnet164_relu_before_add", 6.14, None, "He et al. 2016, table 2"),
    _paper("resnet110_relu_only", 6.71, None, "He et al. 2016, table 2"),
    _paper("resnet164_relu_only", 5.91, None, "He et al. 2016, table 2"),
    _paper("resnet1001", 7.61, None, "He et al. 2016, table 3"),
    _paper("preresnet1001", 4.92, None, "He et al. 2016, table 3"),
    _paper("preresnet152", 21.1, 5.5, "He et al. 2016, table 5, at 320 pixels", 320),
    _paper("preresnet200", 20.7, 5.3, "He et al. 2016, table 5, at 320 pixels", 320),
    _paper("alexnet2012", 40.7, 18.2, "Krizhevsky et al. 2012, table 2, 1 CNN, 10 crops"),
    _paper("inception_v4", 19.79, 4.80, "Open Model Zoo 2021.1, googlenet-v4-tf"),
)


def find(name: str) -> Entry:
    """The zoo's entry of that name.

    Raises:
        UnknownName: no such entry; the nearest names are in the message.
    """
    if name in ENTRIES:
        return ENTRIES[name]
    near = difflib.get_close_matches(name.lower(), ENTRIES, n=3)
    raise UnknownName(
        f"there is no model {name!r}",
        cause=f"Did you mean {' or '.join(near)}?" if near else "",
        fix="`resdeploy models` lists them; timm:NAME, torchvision:NAME and package.module:factory work too",
    )


def spec(
    name: str,
    *,
    classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    preprocessing: Preprocessing | None = None,
    labels: tuple[str, ...] = (),
    weights: str = "random",
) -> ModelSpec:
    """The description of a zoo model or a foreign one; what is not given takes the model's defaults.

    Args:
        name: a zoo name, `timm:NAME`, `torchvision:NAME` or `package.module:factory`.
        classes: None: as many as `labels`, else the model's own.
        input_shape: channels, height, width.
        preprocessing: None: what the published weights were evaluated with, scaled to `input_shape`.
        labels: class names.
        weights: as given to `weights.resolve`; torchvision's V2 files want another resize than its V1.

    Raises:
        UnknownName: no such model.
        FactoryRefused: a factory that nobody typed (`foreign.permit`).
        UsageError: classes, labels, shape and preprocessing contradict each other.
        PackageMissing: a foreign model's package is not installed.
    """
    classes = classes if classes is not None or not labels else len(labels)
    _check(classes, input_shape, preprocessing, labels)
    if ":" in name:
        from resdeploy.models import foreign

        return foreign.spec(
            name, classes=classes, input_shape=input_shape, preprocessing=preprocessing, labels=labels, weights=weights
        )
    entry = find(name)
    if input_shape is None:
        size = preprocessing.size if preprocessing else entry.input_shape[1:]
        input_shape = (len(preprocessing.mean) if preprocessing else 3, *size)
    classes = classes if classes is not None else entry.classes
    return ModelSpec(
        name=name,
        family=entry.family,
        classes=classes,
        input_shape=input_shape,
        preprocessing=preprocessing or _preprocessing(entry, input_shape, weights),
        labels=labels,
        params=entry.params_for(classes, input_shape[0]),
    )


def _check(
    classes: int | None,
    input_shape: tuple[int, int, int] | None,
    preprocessing: Preprocessing | None,
    labels: tuple[str, ...],
) -> None:
    if classes is not None and classes < 1:
        raise UsageError(f"a model cannot have {classes} classes", fix="Give --classes a positive number")
    if labels and classes != len(labels):
        raise UsageError(f"there are {len(labels)} labels for {classes} classes", fix="Leave one of the two out")
    if input_shape is not None and min(input_shape) < 1:
        raise UsageError(f"an input cannot be {input_shape}", fix="Give channels, height and width, all positive")
    if input_shape and preprocessing:
        shape = (len(preprocessing.mean), *preprocessing.size)
        if shape != input_shape:
            raise UsageError(
                f"the preprocessing makes inputs of {shape} for a model that takes {input_shape}",
                fix="Give --mean and --std one value per channel, and --img-size the model's size",
            )


def _preprocessing(entry: Entry, shape: tuple[int, int, int], weights: str) -> Preprocessing | None:
    """ImageNet: the resize of the weights' own evaluation, in proportion to the crop. CIFAR: no resizing."""
    channels, height, width = shape
    if channels not in (1, 3):
        return None  # nobody knows what a picture with two or twelve channels means
    resize = None
    if not entry.cifar:
        full = next((p.resize for p in entry.published if p.weights == weights.lower()), entry.size * 256 / 224)
        resize = round(min(height, width) * full / entry.size)
    if entry.centred:
        half = (0.5,) * channels
        mode: Literal["L", "RGB"] = "L" if channels == 1 else "RGB"
        return Preprocessing(size=(height, width), resize=resize, channels=mode, mean=half, std=half)
    if channels == 3:
        return Preprocessing(size=(height, width), resize=resize)
    # Grey: the averages of the three colours' statistics.
    return Preprocessing(size=(height, width), resize=resize, channels="L", mean=(0.449,), std=(0.226,))


def create(spec: ModelSpec, *, seed: int = 0) -> nn.Module:
    """The network of a description, with seeded random weights, in eval mode; the global generators stay untouched.

    Takes (N, *spec.input_shape) float32 and gives logits (N, spec.classes).

    Raises:
        UnknownName, UsageError, PackageMissing, FactoryRefused: as `spec`.
    """
    packages.need("torch", spec.name, otherwise="name an ONNX file, which needs no torch")
    import torch

    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also seed every GPU.
        torch.default_generator.manual_seed(seed)
        if ":" in spec.name:
            from resdeploy.models import foreign

            return foreign.create(spec)
        from resdeploy.models import classics, preact, resnet

        find(spec.name)
        home = next(module for module in (resnet, preact, classics) if spec.name in module.VARIANTS)
        net: nn.Module = home.make(spec.name, spec.classes, spec.input_shape[0])
        if isinstance(net, resnet.ResNet):
            resnet.remove_blocks(net, spec.removed)
        elif spec.removed:
            raise UsageError(f"blocks cannot be taken out of {spec.name}", fix="Prune its ONNX file")
        return net.eval()

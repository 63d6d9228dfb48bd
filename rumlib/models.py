"""Networks from images to logits, nothing else. Any other nn.Module of that kind works everywhere as well.

    make_model = partial(mlp, shape=(1, 8, 8), hidden=(128,))   # a factory: what scores and oracles train anew
    model = build(make_model, seed=0)                           # the same weights for the same seed
    describe(make_model)                                        # 'mlp(hidden=(128,), shape=(1, 8, 8))'
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from rumlib.device import as_seed, cuda_rng_devices

Factory = Callable[[], nn.Module]
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)               # of CIFAR-10's channels


def mlp(shape: tuple[int, ...] = (1, 8, 8), classes: int = 10, hidden: tuple[int, ...] = (128,),
        norm: bool = False) -> nn.Module:
    """Fully connected layers with ReLU between them, and with `norm` BatchNorm before it; inputs in [0, 1], images or
    rows (shape (d,)), are centred and scaled inside."""
    widths = (prod(shape), *hidden)
    layers = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), *[nn.BatchNorm1d(b)] * norm, nn.ReLU()]
    return nn.Sequential(Normalize(0.3, 0.4), nn.Flatten(), *layers, nn.Linear(widths[-1], classes))


def small_resnet(shape: tuple[int, ...] = (3, 16, 16), classes: int = 10,
                 widths: tuple[int, ...] = (16, 32, 64)) -> nn.Module:
    """A stem, then one residual block (torchvision's BasicBlock) per further width, each halving the resolution."""
    from torchvision.models.resnet import BasicBlock  # here: it takes a second to import
    from torchvision.ops import Conv2dNormActivation

    blocks = []
    for a, b in pairwise(widths):
        shortcut = Conv2dNormActivation(a, b, 1, stride=2, activation_layer=None)
        blocks.append(BasicBlock(a, b, stride=2, downsample=shortcut))
    return channels_last(nn.Sequential(Normalize(0.5, 0.25), Conv2dNormActivation(shape[0], widths[0]), *blocks,
                                       nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes)))


def resnet18(classes: int = 10, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD,
             stem: str = "cifar") -> nn.Module:
    """torchvision's ResNet-18. stem="cifar", for 32x32 images: a 3x3 convolution of stride 1 and no max-pooling;
    "imagenet": torchvision's own, 7x7 of stride 2 and max-pooling.

    Inputs in [0, 1] are normalised inside, with CIFAR-10's mean and standard deviation by default.
    """
    return _resnet("resnet18", classes, mean, std, stem)


def resnet50(classes: int = 10, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD,
             stem: str = "cifar") -> nn.Module:
    """torchvision's ResNet-50, with the stems of `resnet18`."""
    return _resnet("resnet50", classes, mean, std, stem)


def _resnet(name: str, classes: int, mean: tuple[float, ...], std: tuple[float, ...], stem: str) -> nn.Module:
    from torchvision.models import get_model

    if stem not in ("cifar", "imagenet"):
        raise ValueError(f'stem must be "cifar" or "imagenet"; got {stem!r}')
    network = get_model(name, num_classes=classes)
    if stem == "cifar":
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return channels_last(nn.Sequential(Normalize(mean, std), network))


def vgg16_bn(classes: int = 10, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD, size: int = 32,
             units: int = 512) -> nn.Module:
    """The convolutions of torchvision's VGG-16 with BatchNorm, for images of size x size pixels, and three layers on
    top, of that many units the first two.

    Inputs in [0, 1] are normalised inside, with CIFAR-10's mean and standard deviation by default.
    """
    from torchvision.models.vgg import cfgs, make_layers

    if size < 32 or size % 32:
        raise ValueError(f"the convolutions halve the size five times: it must be a multiple of 32; got {size}")
    convolutions = make_layers(cfgs["D"], batch_norm=True)
    for layer in convolutions:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    widths = (512 * (size // 32) ** 2, units, units)
    top = [layer for a, b in pairwise(widths) for layer in (nn.Dropout(), nn.Linear(a, b), nn.ReLU())]
    return channels_last(nn.Sequential(Normalize(mean, std), convolutions, nn.Flatten(), *top,
                                       nn.Linear(units, classes)))


def vit_tiny(classes: int = 10, size: int = 32, patch: int = 4, depth: int = 4, width: int = 128, heads: int = 4,
             mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> nn.Module:
    """torchvision's vision transformer for small colour images: `depth` blocks over patches of patch x patch pixels.

    Inputs in [0, 1] are normalised inside, with CIFAR-10's mean and standard deviation by default.
    """
    from torchvision.models import VisionTransformer

    network = VisionTransformer(image_size=size, patch_size=patch, num_layers=depth, num_heads=heads, hidden_dim=width,
                                mlp_dim=2 * width, num_classes=classes)
    return nn.Sequential(Normalize(mean, std), network)


def channels_last(model: nn.Module) -> nn.Module:
    """The same model with its convolutions laid out channels-last: 1.2 to 1.7 times faster, on CPUs and GPUs."""
    return model.to(memory_format=torch.channels_last)


class Normalize(nn.Module):
    """(x - mean) / std, per channel or with one value for all."""

    def __init__(self, mean: float | tuple[float, ...], std: float | tuple[float, ...]):
        super().__init__()
        # not persistent: two constants of the architecture, not weights
        for name, value in (("mean", torch.as_tensor(mean)), ("std", torch.as_tensor(std))):
            self.register_buffer(name, value.view(-1, 1, 1) if value.ndim else value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def build(make_model: Factory, seed: int) -> nn.Module:
    """A new model with weights drawn from `seed`; the global random state is left as it was.

    Raises TypeError where `make_model` is no function that gives an nn.Module.
    """
    check_factory(make_model)
    with torch.random.fork_rng(cuda_rng_devices()):                   # the seed is set on GPUs too
        torch.manual_seed(as_seed(seed))
        model = make_model()
    if not isinstance(model, nn.Module):
        raise TypeError(f"a factory must return a torch.nn.Module; {describe(make_model)} returned a "
                        f"{type(model).__name__}")
    return model


def check_factory(make_model: Factory) -> None:
    """Raise TypeError for what cannot be a factory, such as a trained model."""
    if isinstance(make_model, nn.Module) or not callable(make_model):
        raise TypeError(f"a factory is a function that makes a new model, e.g. lambda: MyNet(); got a "
                        f"{type(make_model).__name__}")


def check_new(model: nn.Module, make_model: Factory) -> None:
    """Refuse, with ValueError, a factory whose models share weights: to train this `model` would change others.

    The factory is called once more, where it can be without memory for the weights and without drawing them.
    """
    with torch.random.fork_rng(cuda_rng_devices()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                other = make_model()
        except Exception:                                    # it reads weights, say
            other = make_model()
    if {id(model), *map(id, model.parameters())} & {id(other), *map(id, other.parameters())}:
        raise ValueError(f"the factory {describe(make_model)} does not make a new model: it returns the same weights "
                         f"each time. Make the network inside of it, or copy.deepcopy what it starts from")


def describe(make_model: Factory) -> str:
    """The name and arguments of a factory: its label, and its identity in keys of memoized results."""
    arguments = {}
    if isinstance(make_model, partial):
        arguments = make_model.keywords
        if make_model.args:
            raise ValueError(f"give the arguments of a model factory by name; got {make_model.args}")
        make_model = make_model.func
    name = getattr(make_model, "__qualname__", type(make_model).__qualname__)
    return f"{name}({', '.join(f'{k}={v!r}' for k, v in sorted(arguments.items()))})"


# -- What any model must be, and how it is asked ----------------------------------------------------------------------


def anchor(model: nn.Module) -> Tensor:
    """The first weight: what tells the device and dtype of a model. Raises TypeError or ValueError for what is no
    module, is compiled by TorchScript, or has no weights."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"a model is a torch.nn.Module from inputs to logits; got a {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"a {type(model).__name__} of TorchScript can be neither copied nor observed: give the "
                        f"nn.Module that it was made from")
    weight = next(model.parameters(), None)
    if weight is None:
        raise ValueError(f"the model {type(model).__name__} has no parameters: there is nothing to train or to unlearn")
    return weight


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """model(x), float32. Raises TypeError for a model that returns anything but a tensor of floats."""
    found = model(x)
    if not isinstance(found, Tensor):
        part = f"{type(found).__name__} with {', '.join(map(str, found))}" if isinstance(found, Mapping) else \
            type(found).__name__
        raise TypeError(f"a model must map inputs to logits, a tensor (n, classes); this one returns a {part}: wrap it "
                        f"in an nn.Module whose forward(x) returns the logits, e.g. self.net(x).logits or "
                        f"self.net(x)[0]")
    if not found.is_floating_point():
        raise TypeError(f"a model must map inputs to logits, a tensor of floats; this one returns {found.dtype}: wrap "
                        f"it in an nn.Module whose forward(x) returns the logits, not classes")
    return found.float()


def check_tokens(model: nn.Module, x: Tensor) -> None:
    """Refuse, with ValueError, whole numbers that are no rows of an embedding of the model."""
    sizes = [layer.num_embeddings for layer in model.modules() if isinstance(layer, nn.Embedding | nn.EmbeddingBag)]
    if not sizes:
        raise ValueError(f"x holds {x.dtype}, taken for tokens, but the model has no nn.Embedding: give it floats, "
                         f"e.g. x.float()")
    if int(x.min()) < 0 or int(x.max()) >= max(sizes):
        raise ValueError(f"tokens must lie in 0..{max(sizes) - 1}, the rows of the model's embedding; x holds "
                         f"{int(x.min())} to {int(x.max())}")


@contextmanager
def evaluating(model: nn.Module):
    """The model in eval mode inside, and every part of it in its own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def normalizing_one(model: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm layers that are given one value per channel, as of a batch of one example, take their running
    statistics for it and leave these as they are: one value has no variance, and torch refuses it. All other batches
    are normalised as ever, and the layers are only observed from the first batch of one on."""
    def begin(_, inputs):
        if len(inputs[0]) == 1 and len(hooks) == 1:
            hooks.extend(layer.register_forward_pre_hook(single) for layer in layers)
            hooks.extend(layer.register_forward_hook(back, always_call=True) for layer in layers)

    def single(layer, inputs):
        if layer.training and layer.track_running_stats and inputs[0].numel() == inputs[0].shape[1]:
            layer.training = False
            switched.append(layer)

    def back(layer, *_):
        if layer in switched:
            switched.remove(layer)
            layer.training = True

    switched: list[nn.Module] = []
    layers = [layer for layer in model.modules() if isinstance(layer, BatchNorm)]
    hooks = [model.register_forward_pre_hook(begin)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

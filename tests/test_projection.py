"""ClassProjection: published values, the closed form against singular vectors, and layers of every kind against plain
NumPy or the same layer written out."""

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted import same
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import rumlib as rum
from rumlib.algorithms.projection import Spaces, moments, patches, projection, sites, through, window

EVERYTHING = rum.ClassProjection(samples=None, rows=None)


def det(*shape, c=0.37, ph=0.0):
    """The deterministic numbers that the published values were made with."""
    return torch.tensor(np.sin(c * np.arange(np.prod(shape), dtype=float)**2 + ph).reshape(shape))


def holding(layer, weight):
    layer = layer.double()
    layer.weight.data.copy_(weight)
    return layer


def look(model, x, **options):
    return moments(model, unlabelled(x), **{"rows": None, "crop": False, "chunk": 3, "random": torch.Generator(),
                                            **options})


def unlabelled(x):
    return x if isinstance(x, rum.Examples) else rum.Examples(x, torch.zeros(len(x), dtype=torch.int64))


def near(value):
    return pytest.approx(value, abs=1e-6)


def rows(matrix):
    return [near(v) for v in matrix]


# -- Values of the published code, float64 ----------------------------------------------------------------------------


def test_a_linear_layer():
    layer = holding(nn.Linear(4, 3), det(3, 4, c=0.21, ph=0.3))
    spaces = Spaces(layer, retain=look(layer, det(6, 4, ph=0.1)), forget=look(layer, det(5, 4, c=0.53, ph=0.7)))
    p_r, p_f = projection(spaces.retain[""], 100.0)[0], projection(spaces.forget[""], 3.0)[0]
    p = torch.eye(4) - p_f @ (torch.eye(4) - p_r)
    assert [p_r.trace(), p_f.trace(), p.trace()] == rows([3.423708, 1.804687, 3.864263])
    assert [p.norm(), (p - p.T).norm()] == rows([1.935408, 0.129494])
    new = spaces.project(100.0, 3.0).weight.detach()
    assert new[0].tolist() == rows([0.297417, 0.467967, 0.891262, 0.798522])
    assert new.norm() == near(2.547111)
    torch.testing.assert_close(new, layer.weight @ p.T)


def test_a_convolution():
    layer = holding(nn.Conv2d(2, 3, 3, padding=1), det(3, 2, 3, 3, c=0.11))
    retain, forget = det(2, 2, 5, 5, ph=0.2), det(2, 2, 5, 5, c=0.61, ph=0.9)
    assert patches(layer, retain).reshape(50, 18).norm() == near(17.934926)
    spaces = Spaces(layer, retain=look(layer, retain), forget=look(layer, forget))
    p_r, p_f = projection(spaces.retain[""], 100.0)[0], projection(spaces.forget[""], 3.0)[0]
    assert [p_r.trace(), p_f.trace()] == rows([14.706673, 2.606867])
    assert (torch.eye(18) - p_f @ (torch.eye(18) - p_r)).norm() == near(4.130837)
    new = spaces.project(100.0, 3.0).weight.detach()
    assert new.norm() == near(4.862865)
    assert new[0, 0].flatten().tolist() == rows([-0.020838, 0.122455, 0.395128, 0.799666, 0.982723, 0.381287,
                                                 -0.700896, -0.768738, 0.677197])


def test_a_cropped_convolution_sees_one_window_of_three_kernels():
    layer, x, random = nn.Conv2d(2, 3, 3, padding=1), torch.rand(2, 2, 12, 12), torch.Generator().manual_seed(0)
    assert patches(layer, x).reshape(-1, 18).shape == (288, 18)
    assert patches(layer, window(layer, x, random)).reshape(-1, 18).shape == (162, 18)
    assert patches(layer, window(layer, x[..., :9], random)).reshape(-1, 18).shape == (216, 18)     # not wider
    starts = {tuple(window(layer, torch.arange(144.0).view(1, 1, 12, 12), random)[0, 0, 0, :1].int().tolist())
              for _ in range(200)}
    assert len(starts) == 16


# -- The closed form --------------------------------------------------------------------------------------------------

sizes = dict(seed=st.integers(0, 10_000), n=st.integers(1, 12), d=st.integers(1, 8))
alphas = st.sampled_from([0.01, 0.25, 1.0, 3.0, 100.0, 1e4])


def vectors(seed, n, d):
    return torch.tensor(np.random.default_rng(seed).normal(size=(n, d)))


def second_moments(a):
    return a.T @ a / (a.T @ a).trace()


def by_singular_vectors(a, alpha):
    """As published: U diag(lambda) U^T of the vectors as columns."""
    u, sigma, _ = np.linalg.svd(a.numpy().T, full_matrices=False)
    s = sigma**2 / (sigma**2).sum()
    return (u * (alpha * s / ((alpha - 1) * s + 1))) @ u.T


@given(**sizes, alpha=alphas)
def test_it_is_the_form_by_singular_vectors(seed, n, d, alpha):
    a = vectors(seed, n, d)
    np.testing.assert_allclose(projection(second_moments(a), alpha), by_singular_vectors(a, alpha), rtol=0, atol=1e-10)


@given(**sizes, chunk=st.integers(1, 12), alpha=alphas)
def test_streamed_or_at_once_is_the_same(seed, n, d, chunk, alpha):
    a = vectors(seed, n, d)
    c = look(nn.Linear(d, 2).double(), a, chunk=chunk)[""]
    np.testing.assert_allclose(projection(c, alpha)[0], by_singular_vectors(a, alpha), rtol=0, atol=1e-8)


@given(**sizes, alpha=alphas)
def test_a_projection_is_symmetric_and_between_0_and_1(seed, n, d, alpha):
    p = projection(second_moments(vectors(seed, n, d)), alpha)
    torch.testing.assert_close(p, p.T, rtol=0, atol=1e-12)
    values = torch.linalg.eigvalsh(p)
    assert values.min() > -1e-9 and values.max() < 1 + 1e-9


@given(**sizes, factor=st.floats(1e-3, 1e3), times=st.integers(2, 4))
def test_scale_and_repetition_do_not_matter(seed, n, d, factor, times):
    a = vectors(seed, n, d)
    c = second_moments(a)
    torch.testing.assert_close(second_moments(factor * a.repeat(times, 1)), c, rtol=0, atol=1e-12)
    layer = nn.Linear(d, 2).double()
    torch.testing.assert_close(look(layer, factor * a.repeat(times, 1))[""], c[None], rtol=0, atol=1e-12)


def spaces_of(layer, retain, forget):
    return Spaces(layer, retain={"": second_moments(retain)[None]}, forget={"": second_moments(forget)[None]})


@given(seed=sizes["seed"], n=st.integers(3, 12), d=st.integers(3, 8))
def test_without_a_forget_space_nothing_changes(seed, n, d):
    """A single direction, s = 1, would be forgotten whatever alpha is."""
    layer = nn.Linear(d, 3).double()
    new = spaces_of(layer, vectors(seed, n, d), vectors(seed + 1, n, d)).project(100.0, 1e-12)
    torch.testing.assert_close(new.weight, layer.weight, rtol=0, atol=1e-8)


@given(seed=sizes["seed"], d=sizes["d"])
def test_a_retain_space_that_is_everything_keeps_everything(seed, d):
    layer, retain = nn.Linear(d, 3).double(), torch.linalg.qr(vectors(seed, d, d)).Q
    new = spaces_of(layer, retain, vectors(seed + 1, 5, d)).project(1e10, 3.0)
    torch.testing.assert_close(new.weight, layer.weight, rtol=0, atol=1e-7)


@given(seed=sizes["seed"], r=st.integers(1, 4), f=st.integers(1, 4))
def test_orthogonal_sets_are_told_apart_exactly(seed, r, f):
    """W a is 0 for what is forgotten and as it was for what is retained; nothing is shared."""
    basis = torch.linalg.qr(vectors(seed, 9, 9)).Q
    retain, forget = basis[:r], basis[r:r + f]
    layer = nn.Linear(9, 3, bias=False).double()
    spaces = spaces_of(layer, retain, forget)
    new = spaces.project(1e7, 1e7)
    torch.testing.assert_close(new(forget), torch.zeros(f, 3).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(new(retain), layer(retain), rtol=0, atol=1e-6)
    assert spaces.separability(100.0, 3.0)[""] == pytest.approx(1)
    assert spaces_of(layer, retain, retain).separability(1e7, 3.0)[""] == pytest.approx(0, abs=1e-6)


@given(**sizes, alpha_r=alphas, alpha_f=alphas)
def test_separability_is_a_share(seed, n, d, alpha_r, alpha_f):
    spaces = spaces_of(nn.Linear(d, 1), vectors(seed, n, d), vectors(seed + 1, n, d))
    p_r, p_f = (by_singular_vectors(vectors(seed + k, n, d), alpha) for k, alpha in enumerate((alpha_r, alpha_f)))
    share = spaces.separability(alpha_r, alpha_f)[""]
    assert share == pytest.approx(np.linalg.norm(p_f - p_f @ p_r) / np.linalg.norm(p_f), abs=1e-9)
    assert 0 <= share <= 1 + 1e-12


def test_a_layer_that_is_given_nothing_stays_as_it_is():
    layer, nothing = nn.Linear(3, 2).double(), torch.zeros(4, 3).double()
    spaces = Spaces(layer, retain=look(layer, vectors(0, 5, 3)), forget=look(layer, nothing))
    assert torch.equal(spaces.project(100.0, 3.0).weight, layer.weight)
    assert spaces.separability(100.0, 3.0) == {"": 0}


def test_no_product_of_full_width_is_needed():
    w, c = det(3, 40), second_moments(vectors(0, 60, 40))
    torch.testing.assert_close(through(w, c, 30.0), w @ projection(c, 30.0))


# -- Convolutions against plain NumPy ---------------------------------------------------------------------------------


def seen_by(layer, x):
    """[group](positions, d): every patch, cut out one by one."""
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    if layer.padding == "same":
        total = [gap * (k - 1) for gap, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        pads = [(t // 2, t - t // 2) for t in total]
    else:
        pads = [(p, p) for p in ((0, 0) if layer.padding == "valid" else layer.padding)]
    mode = {"zeros": "constant", "replicate": "edge", "circular": "wrap"}.get(layer.padding_mode, layer.padding_mode)
    x = np.pad(x.numpy(), ((0, 0), (0, 0), *pads), mode=mode)
    found = [[] for _ in range(layer.groups)]
    for image in x:
        for top in range(0, image.shape[1] - dh * (kh - 1), sh):
            for left in range(0, image.shape[2] - dw * (kw - 1), sw):
                patch = image[:, top:top + dh * (kh - 1) + 1:dh, left:left + dw * (kw - 1) + 1:dw]
                for group, part in enumerate(np.split(patch, layer.groups)):
                    found[group].append(part.ravel())
    return [torch.tensor(np.array(group)) for group in found]


CONVOLUTIONS = {
    "plain": dict(kernel_size=3),
    "padded": dict(kernel_size=3, padding=1),
    "strided": dict(kernel_size=3, stride=2, padding=1),
    "1x1": dict(kernel_size=1, stride=2),
    "not square": dict(kernel_size=(2, 3), stride=(1, 2), padding=(1, 0)),
    "dilated": dict(kernel_size=3, dilation=(2, 1), padding=2),
    "grouped": dict(kernel_size=3, groups=2, padding=1),
    "depthwise": dict(kernel_size=3, groups=4, stride=2),
    "same": dict(kernel_size=(3, 2), padding="same", dilation=(1, 2)),
    "valid": dict(kernel_size=3, padding="valid"),
    "reflected": dict(kernel_size=3, padding=2, padding_mode="reflect"),
    "circular": dict(kernel_size=3, padding=1, padding_mode="circular"),
    "replicated": dict(kernel_size=4, padding="same", padding_mode="replicate"),
}


@pytest.mark.parametrize("chunk", [2, 5])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_of_any_kind_by_numpy(name, chunk):
    layer = nn.Conv2d(4, 8, **CONVOLUTIONS[name]).double()
    retain, forget = det(5, 4, 7, 8, c=0.31), det(4, 4, 7, 8, c=0.57, ph=0.4)
    spaces = Spaces(layer, look(layer, retain, chunk=chunk), look(layer, forget, chunk=chunk))
    new = spaces.project(100.0, 3.0).weight
    expected = []
    for w, a_r, a_f in zip(layer.weight.detach().numpy().reshape(layer.groups, 8 // layer.groups, -1),
                           seen_by(layer, retain), seen_by(layer, forget), strict=True):
        p_r, p_f = by_singular_vectors(a_r, 100.0), by_singular_vectors(a_f, 3.0)
        expected.append(w @ (np.eye(len(p_r)) - p_f @ (np.eye(len(p_r)) - p_r)).T)
    np.testing.assert_allclose(new.detach().numpy().reshape(layer.groups, 8 // layer.groups, -1), expected, atol=1e-8)


def test_the_layout_in_memory_does_not_matter():
    layer = nn.Conv2d(4, 6, 3, padding=1)
    x, y = det(6, 4, 5, 5).float(), torch.tensor([0, 0, 0, 1, 1, 1])
    models = [nn.Sequential(layer, nn.Flatten(), nn.Linear(150, 2))]
    models.append(copy.deepcopy(models[0]).to(memory_format=torch.channels_last))
    forget, retain = rum.Examples(x, y).split_classes(1)
    one, other = (EVERYTHING(model, forget, retain) for model in models)
    torch.testing.assert_close(one[0].weight, other[0].weight)
    assert other[0].weight.is_contiguous(memory_format=torch.channels_last)


# -- Attention against the same with linear layers --------------------------------------------------------------------


class Written(nn.Module):
    """Multi-head attention (batch first) of linear layers that are called."""

    def __init__(self, like):
        super().__init__()
        self.heads, d = like.num_heads, like.embed_dim
        own = (like.q_proj_weight, like.k_proj_weight, like.v_proj_weight) if like.in_proj_weight is None \
            else like.in_proj_weight.chunk(3)
        bias = like.in_proj_bias.chunk(3) if like.in_proj_bias is not None else (None,) * 3
        for name, weight, b in (*zip("qkv", own, bias, strict=True), ("o", like.out_proj.weight, like.out_proj.bias)):
            layer = nn.Linear(weight.shape[1], d, bias=b is not None, dtype=weight.dtype)
            layer.weight.data.copy_(weight)
            if b is not None:
                layer.bias.data.copy_(b)
            self.add_module(name, layer)

    def forward(self, query, key, value):
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for layer, x in ((self.q, query), (self.k, key), (self.v, value)))        # (n, heads, tokens, d)
        shares = (q @ k.mT / q.shape[-1]**0.5).softmax(-1)
        return self.o((shares @ v).transpose(1, 2).flatten(2))


class Crossed(nn.Module):
    """Tokens (n, 5, 6) attend to other views of themselves; classified by their mean."""

    def __init__(self, attention, key=6, value=6, flipped=False, **options):
        super().__init__()
        self.attention, self.key, self.value, self.flipped, self.options = attention, key, value, flipped, options
        self.top = nn.Linear(6, 2).double()

    def forward(self, x):
        crossed = (self.key, self.value) != (6, 6)
        given = (x, x.flip(1)[..., :self.key], x[..., :self.value].tanh()) if crossed else (x,) * 3
        if self.flipped:                                     # (tokens, n, d)
            given = tuple(x.transpose(0, 1) for x in given)
        found = self.attention(*given, **self.options)
        found = found[0] if isinstance(found, tuple) else found
        return self.top((found.transpose(0, 1) if self.flipped else found).mean(1))


def tokens(seed=0):
    x = torch.tensor(np.random.default_rng(seed).normal(size=(20, 5, 6)))
    return rum.Examples(x, torch.arange(20) % 2).split_classes(1)


ATTENTIONS = {
    "self": ({}, {}, {}),
    "without weights": ({}, {}, {"need_weights": False}),
    "tokens first": ({"batch_first": False}, {"flipped": True}, {}),
    "no bias": ({"bias": False}, {}, {}),
    "keys and values of other widths": ({"kdim": 4, "vdim": 3}, {"key": 4, "value": 3}, {}),
    "one head": ({"num_heads": 1}, {}, {"need_weights": False}),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_is_projected_like_its_linear_layers(name):
    made, inputs, called = ATTENTIONS[name]
    attention = nn.MultiheadAttention(**{"embed_dim": 6, "num_heads": 2, "batch_first": True, **made}).double()
    model = Crossed(attention, **inputs, **called)
    reference = copy.deepcopy(model)
    reference.attention, reference.flipped, reference.options = Written(attention), False, {}
    forget, retain = tokens()
    torch.testing.assert_close(model.eval()(retain.x), reference(retain.x))
    new, expected = (EVERYTHING(m, forget, retain) for m in (model, reference))
    assert not torch.equal(new.attention.out_proj.weight, attention.out_proj.weight)
    written = Written(new.attention)
    for letter in "qkvo":
        torch.testing.assert_close(getattr(written, letter).weight, getattr(expected.attention, letter).weight)
    torch.testing.assert_close(new.top.weight, expected.top.weight)
    shares = rum.algorithms.separability(model, forget, retain)
    assert list(shares) == [*(f"attention.{part}" for part in "qkv"), "attention.out_proj", "top"]
    assert list(shares.values()) == pytest.approx(list(rum.algorithms.separability(reference, forget, retain).values()))


class WrittenLayer(nn.Module):
    def __init__(self, like):
        super().__init__()
        self.attention, self.like = Written(like.self_attn), copy.deepcopy(like)

    def forward(self, x):
        x = self.like.norm1(x + self.attention(x, x, x))
        return self.like.norm2(x + self.like.linear2(self.like.linear1(x).relu()))


def test_the_fused_transformer_layer_is_looked_into():
    layer = nn.TransformerEncoderLayer(6, 2, dim_feedforward=9, batch_first=True).double().eval()
    top = nn.Sequential(nn.Flatten(), nn.Linear(30, 2).double())
    model, reference = nn.Sequential(layer, top), nn.Sequential(WrittenLayer(layer), copy.deepcopy(top))
    forget, retain = tokens()
    with torch.no_grad():
        torch.testing.assert_close(model(retain.x), reference(retain.x))
    new, expected = (EVERYTHING(m, forget, retain) for m in (model, reference))
    for letter in "qkvo":
        torch.testing.assert_close(getattr(Written(new[0].self_attn), letter).weight,
                                   getattr(expected[0].attention, letter).weight)
    for name in ("linear1", "linear2"):
        torch.testing.assert_close(getattr(new[0], name).weight, getattr(expected[0].like, name).weight)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_with_masked_tokens_is_looked_into():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 9, batch_first=True), 2)
            self.top = nn.Linear(6, 2)

        def forward(self, x):
            hidden = torch.zeros(x.shape[:2], dtype=torch.bool)
            hidden[:, 3:] = True
            return self.top(self.encoder(x, src_key_padding_mask=hidden)[:, 0])

    model, (forget, retain) = Masked().float(), tokens()
    forget, retain = (rum.Examples(s.x.float(), s.y) for s in (forget, retain))
    new = EVERYTHING(model, forget, retain)
    assert moved(model, new) == {name for name, p in model.named_parameters() if p.ndim == 2}


def test_a_vision_transformer_of_torchvision():
    model = rum.models.build(partial(rum.models.vit_tiny, classes=2, size=8, depth=2, width=16, heads=2), 0)
    nn.init.normal_(model[1].heads.head.weight)              # torchvision starts it at 0
    forget, retain = rum.Examples(torch.rand(12, 3, 8, 8), torch.arange(12) % 2).split_classes(0)
    new = EVERYTHING(model, forget, retain)
    assert moved(model, new) == {"1.conv_proj.weight", "1.heads.head.weight", *(
        f"1.encoder.layers.encoder_layer_{k}.{part}" for k in range(2) for part in (
            "self_attention.in_proj_weight", "self_attention.out_proj.weight", "mlp.0.weight", "mlp.3.weight"))}
    shares = rum.algorithms.separability(model, forget, retain)
    assert len(shares) == 2 + 2 * 6 and all(0 <= share <= 1 for share in shares.values())


# -- What changes, and what is looked at ------------------------------------------------------------------------------


def moved(model, new):
    """Names in the state of a model, buffers included, that differ."""
    return {name for name, value in model.state_dict().items() if not torch.equal(value, new.state_dict()[name])}


@pytest.fixture(scope="module")
def problem():
    """(model, forget, retain): a residual network on 400 digits, one class of which is to be forgotten."""
    train, _ = rum.load("digits", n=400, noise=0, flips=0)
    make_model = partial(rum.models.small_resnet, shape=(1, 8, 8), widths=(8, 16))
    return rum.fit(make_model, train, rum.Recipe(epochs=8, batch_size=32), seed=0), *train.split_classes(3)


def test_only_weights_of_linear_and_convolution_layers_change(problem):
    model, forget, retain = problem
    new = rum.ClassProjection()(model, forget, retain)
    assert moved(model, new) == {f"{name}.weight" for name, module in model.named_modules()
                                 if isinstance(module, nn.Linear | nn.Conv2d)}


@pytest.mark.parametrize("make, count", [(rum.models.vgg16_bn, 16), (rum.models.resnet18, 21),
                                         (rum.models.vit_tiny, 26)])
def test_the_layers_of_known_networks(make, count):
    """13 convolutions and 3 linear layers; 20 and 1; patches, four blocks of q, k, v, out, and two layers, the head."""
    assert len(sites(make())) == count


def test_hooks_leave_no_trace(problem):
    model, forget, retain = problem
    spaces = rum.ClassProjection(samples=20).spaces(model, forget, retain)
    assert not any(module._forward_pre_hooks for m in (model, spaces.model) for module in m.modules())


def test_a_layer_that_is_used_twice_sees_both_uses():
    class Twice(nn.Module):
        def __init__(self, first, second):
            super().__init__()
            self.first, self.second, self.top = first, second, nn.Linear(4, 2).double()

        def forward(self, x):
            return self.top(self.second(self.first(x).relu()))

    layer = nn.Linear(4, 4).double()
    model = Twice(layer, layer)
    (forget, retain), top = rum.Examples(vectors(0, 20, 4), torch.arange(20) % 2).split_classes(0), model.top
    both = [torch.cat([s.x, layer(s.x).relu()]).detach() for s in (retain, forget)]
    expected = spaces_of(layer, *both).project(100.0, 3.0)
    new = EVERYTHING(model, forget, retain)
    torch.testing.assert_close(new.first.weight, expected.weight)
    assert new.first is new.second and not torch.equal(new.top.weight, top.weight)


def test_half_precision_is_kept_and_sums_are_not():
    layer = holding(nn.Linear(4, 2), det(2, 4)).to(torch.bfloat16)
    x = det(2000, 4)
    assert look(layer, x)[""].dtype == torch.float64
    seen = x.to(torch.bfloat16).double()
    torch.testing.assert_close(look(layer, x)[""][0], second_moments(seen), rtol=0, atol=1e-12)
    assert Spaces(layer, look(layer, x), look(layer, x[:3])).project(10.0, 3.0).weight.dtype == torch.bfloat16


class Largest(TorchDispatchMode):
    """The most numbers in any tensor that is made."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        own = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for t in tree_leaves(found):
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in own:    # a view takes no memory
                self.numel = max(self.numel, t.numel())
        return found


@pytest.mark.parametrize("rows", [None, 500])
def test_memory_does_not_grow_with_the_number_of_samples(rows):
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    largest = {}
    for n in (100, 10_000):
        examples = unlabelled(torch.rand(n, 1, 4, 4))
        with Largest() as seen:
            look(model, examples, chunk=50, rows=rows)
        largest[n] = seen.numel
    assert largest[10_000] <= largest[100] < 100 * 4 * 9     # less than the patches of 100 images
    assert rows or largest[10_000] == largest[100]


def test_no_block_of_patches_is_larger_than_it_may_be(monkeypatch):
    layer, x = nn.Conv2d(2, 3, 3, padding=1).double(), det(7, 2, 6, 6)
    whole = look(layer, x, chunk=7)[""]
    monkeypatch.setattr("rumlib.algorithms.projection.BLOCK", 100)
    with Largest() as seen:
        parts = look(layer, x, chunk=7)[""]
    torch.testing.assert_close(parts, whole)
    assert seen.numel < 7 * 2 * 9 * 9 < 7 * 36 * 18            # the padded images, and not their patches




@pytest.mark.parametrize("rows, chunk, used", [(None, 3, 40), (8, 10, 8), (8, 5, 8), (9, 5, 10), (100, 10, 40)])
def test_as_many_vectors_are_used_as_were_asked_for(rows, chunk, used):
    """Ten examples of four tokens, all orthogonal: each that is used has its share of the trace."""
    found = look(nn.Linear(40, 1), torch.eye(40).view(10, 4, 40), rows=rows, chunk=chunk)[""][0].diagonal()
    assert sorted(found.tolist()) == pytest.approx([0] * (40 - used) + [1 / used] * used)


def test_random_rows_are_near_all_rows(problem):
    model, _, retain = problem
    whole, part = (look(model, retain.x, rows=rows, chunk=64) for rows in (None, 2000))
    for name, c in whole.items():
        assert (part[name] - c).norm() < 0.2 * c.norm()
        assert torch.equal(part[name], c) == (name == "5")   # 200 vectors: the linear layer's are all there


# -- Samples ----------------------------------------------------------------------------------------------------------


def indices(algorithm, forget, retain, seed=0):
    gone, kept = algorithm._sampled(forget, retain, torch.Generator().manual_seed(seed))
    return set(gone.index.tolist()), kept


def test_samples_are_of_the_forget_set_and_of_each_retained_class(problem):
    _, forget, retain = problem
    gone, kept = indices(rum.ClassProjection(samples=30), forget, retain)
    assert len(gone) == 30 and gone <= set(forget.index.tolist())
    assert kept.y.bincount(minlength=10).tolist() == [3, 3, 3, 0, 3, 3, 3, 3, 3, 3]
    assert len(set(kept.index.tolist())) == 27 and set(kept.index.tolist()) <= set(retain.index.tolist())
    others = indices(rum.ClassProjection(samples=30), forget, retain, seed=1)[1]
    assert set(kept.index.tolist()) != set(others.index.tolist())


def test_a_class_that_is_too_small_gives_all_it_has(problem):
    _, forget, retain = problem
    kept = indices(rum.ClassProjection(samples=100_000), forget, retain)[1]
    assert sorted(kept.index.tolist()) == retain.index.tolist()


def test_the_published_samples_of_retained_classes_are_the_first(problem):
    _, forget, retain = problem
    mixed = retain[torch.randperm(len(retain), generator=torch.Generator().manual_seed(0))]
    kept = indices(rum.ClassProjection(samples=18, compat="official"), forget, mixed)[1]
    assert kept.index.tolist() == [i for c in range(10) if c != 3 for i in retain.index[retain.y == c][:2].tolist()]


def test_what_is_looked_at_is_the_cost(problem):
    model, forget, retain = problem
    with rum.train.cost() as spent:
        rum.ClassProjection(samples=18)(model, forget, retain)
    assert (spent.examples, spent.steps) == (18 + 18, 0)
    with rum.train.cost() as spent:
        table = rum.ClassProjection((10.0,), (1.0, 3.0), samples=18, scored=15).grid(model, forget, retain)
    assert spent.examples == 36 + len(table) * (15 + min(15, len(forget)))


# -- The search -------------------------------------------------------------------------------------------------------

SEARCH = rum.ClassProjection((10.0, 300.0, 3000.0), (3.0, 1.0, 100.0, 0.3), samples=90)


def by_hand(algorithm, model, forget, retain):
    """The published loop: (alpha_retain, alpha_forget, retain, forget) of all that is tried."""
    spaces = algorithm.spaces(model, forget, retain)
    best = rum.accuracy(model, retain) * (1 - rum.accuracy(model, forget))
    for r in algorithm.alpha_retain:
        for f in sorted(algorithm.alpha_forget):
            if f <= r / 1000:
                continue
            new = spaces.project(r, f)
            acc_r, acc_f = rum.accuracy(new, retain), rum.accuracy(new, forget)
            yield r, f, acc_r, acc_f
            best = max(best, acc_r * (1 - acc_f))
            if acc_r < best or acc_f < 0.1:
                break


def test_the_grid_is_the_published_loop(problem):
    table = SEARCH.grid(*problem)
    columns = ["alpha_retain", "alpha_forget", "retain", "forget"]
    assert [tuple(row) for row in table[columns].iloc[1:].itertuples(index=False)] == list(by_hand(SEARCH, *problem))
    assert table.iloc[0, :2].isna().all() and table["retain"][0] == rum.accuracy(problem[0], problem[2])
    assert (table["score"] == table["retain"] * (1 - table["forget"])).all()
    assert table["chosen"].sum() == 1 and table["chosen"].idxmax() == table["score"].idxmax() > 0
    assert 4 < len(table) < 1 + 4 + 3 + 1                    # the original; no .3 for 300, and for 3000 only 100


def test_a_call_takes_what_the_grid_chose(problem):
    table = SEARCH.grid(*problem)
    r, f = table[table["chosen"]].iloc[0][["alpha_retain", "alpha_forget"]]
    fixed = replace(SEARCH, alpha_retain=r, alpha_forget=f)
    assert same(SEARCH(*problem), fixed(*problem))
    assert same(replace(SEARCH, alpha_retain=r)(*problem), fixed(*problem))


def test_the_original_stays_where_nothing_is_better():
    """One direction for both sets: what forgets one forgets the other."""
    model = nn.Linear(1, 2, bias=False)
    model.weight.data.copy_(torch.tensor([[1.0], [-1.0]]))
    forget, retain = (rum.Examples(torch.full((4, 1), x), torch.full((4,), y)) for x, y in ((-1.0, 1), (1.0, 0)))
    algorithm = replace(SEARCH, samples=None, alpha_retain=(1.0,))
    assert algorithm.grid(model, forget, retain)["chosen"].tolist()[0]
    assert same(algorithm(model, forget, retain), model)


# -- Refused ----------------------------------------------------------------------------------------------------------


class Given(nn.Module):
    """Gives the layer after it NaN in the third image on."""

    def forward(self, x):
        return torch.where(torch.arange(len(x))[:, None] < 2, x, torch.nan)


def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


def frozen():
    return nn.Sequential(nn.Linear(4, 4)).requires_grad_(False)


def computed():
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))


def broken():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight.data[0, 0] = torch.nan
    return model


class Aside(nn.Module):
    """Has a linear layer that is never called."""

    def __init__(self):
        super().__init__()
        self.spare, self.scale = nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x * self.scale


points = rum.Examples(det(24, 4).float(), torch.arange(24) % 4)
halves = points.split(torch.arange(24) < 12)                  # not by class


REFUSED = {
    "alpha 0": (lambda: rum.ClassProjection(alpha_retain=0), ValueError, "alpha_retain", "0"),
    "infinite alpha": (lambda: rum.ClassProjection(alpha_forget=float("inf")), ValueError, "alpha_forget", "inf"),
    "no alphas": (lambda: rum.ClassProjection(alpha_forget=()), ValueError, "alpha_forget", "()"),
    "a list of alphas": (lambda: rum.ClassProjection(alpha_forget=[1, 3]), ValueError, "tuple", "[1, 3]"),
    "no samples": (lambda: rum.ClassProjection(samples=0), ValueError, "samples", "None", "0"),
    "no rows": (lambda: rum.ClassProjection(rows=0), ValueError, "rows", "0"),
    "granularity": (lambda: rum.ClassProjection(granularity="points"), ValueError, "examples", "'points'"),
    "compat": (lambda: rum.ClassProjection(compat="old"), ValueError, "official", "'old'"),
    "nothing to search": (lambda: rum.ClassProjection().grid(nn.Linear(4, 4), *points.split_classes(0)), ValueError,
                          "tuple", "alpha_retain=100.0"),
    "separability of a search": (
        lambda: rum.algorithms.separability(nn.Linear(4, 4), *points.split_classes(0), by=SEARCH), ValueError,
        "one alpha_retain"),
    "a class on both sides": (lambda: rum.ClassProjection()(nn.Linear(4, 4), *halves), ValueError, "class 0",
                              "split_classes(0)", "granularity='examples'"),
    "class not in the data": (lambda: points.split_classes(1, 7), ValueError, "class 7", "[0, 1, 2, 3]"),
    "all classes": (lambda: points.split_classes(0, 1, 2, 3), ValueError, "retain set is empty"),
    "no class": (lambda: points.split_classes(), ValueError, "forget set is empty"),
    "less than one per class": (lambda: rum.ClassProjection(samples=2)(nn.Linear(4, 4), *points.split_classes(0)),
                                ValueError, "samples=2", "3 retained", "at least 3"),
    "no layer": (lambda: rum.ClassProjection()(nn.LayerNorm(4), *points.split_classes(0)), ValueError, "nn.Linear"),
    "frozen": (lambda: rum.ClassProjection()(frozen(), *points.split_classes(0)), ValueError, "requires a gradient"),
    "never called": (lambda: rum.ClassProjection()(Aside(), *points.split_classes(0)), ValueError, "spare"),
    "shared weight": (lambda: rum.ClassProjection()(tied(), *points.split_classes(0)), ValueError, "'0'", "copy"),
    "computed weight": (lambda: rum.ClassProjection()(computed(), *points.split_classes(0)), TypeError, "'0'",
                        "parametrization"),
    "NaN weight": (lambda: rum.ClassProjection()(broken(), *points.split_classes(0)), FloatingPointError, "weight",
                   "'1'"),
    "NaN activation": (lambda: rum.ClassProjection(samples=None)(
        nn.Sequential(nn.Linear(4, 4), Given(), nn.Linear(4, 4)), *points.split_classes(0)), FloatingPointError,
        "layer '2'", "NaN"),
}


@pytest.mark.parametrize("call, error, words", [(call, error, words) for call, error, *words in REFUSED.values()],
                         ids=REFUSED)
def test_refused(call, error, words):
    with pytest.raises(error) as problem:
        call()
    for word in words:
        assert word in str(problem.value)


def test_a_refusal_leaves_attention_as_it_was():
    with pytest.raises(FloatingPointError):
        REFUSED["NaN activation"][0]()
    assert torch.backends.mha.get_fastpath_enabled()

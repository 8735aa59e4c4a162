import pytest
import torch
from torch.nn import functional as F

from unet_training.networks.u_net import UNet


def double_conv(x, weights, name):
    for conv, norm in (("0", "1"), ("3", "4")):
        x = F.conv2d(x, weights[f"{name}.{conv}.weight"], padding=1)
        mean = x.mean(dim=(2, 3), keepdim=True)
        variance = ((x - mean) ** 2).mean(dim=(2, 3), keepdim=True)
        scale, shift = (weights[f"{name}.{norm}.{key}"].view(1, -1, 1, 1) for key in ("weight", "bias"))
        x = (x - mean) / (variance + 1e-5).sqrt() * scale + shift
        x = torch.where(x > 0, x, 0.01 * x)
    return x


def reference_u_net(x, weights):
    """The paper's network from its description alone."""
    levels = [double_conv(x, weights, "down.0")]
    for level in range(1, 5):
        levels.append(double_conv(F.max_pool2d(levels[-1], kernel_size=2, stride=2), weights, f"down.{level}"))
    x = levels.pop()
    for step in range(4):
        skip = levels.pop()
        x = F.conv_transpose2d(x, weights[f"up.{step}.up.weight"], weights[f"up.{step}.up.bias"], stride=2)
        padded = torch.zeros(*x.shape[:2], *skip.shape[2:])
        top, left = (skip.shape[2] - x.shape[2]) // 2, (skip.shape[3] - x.shape[3]) // 2
        padded[:, :, top:top + x.shape[2], left:left + x.shape[3]] = x
        x = double_conv(torch.cat([skip, padded], dim=1), weights, f"up.{step}.conv")
    return F.conv2d(x, weights["out.weight"], weights["out.bias"])


@pytest.mark.parametrize("size", [(48, 32), (50, 38)])
def test_u_net_equals_reference(size):
    torch.manual_seed(0)
    model = UNet(3, base_width=4, n_last_channel=6).eval()
    for parameter in model.parameters():  # norms start as identity, which would hide a mix-up
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 1, *size)
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference_u_net(x, model.state_dict()), rtol=1e-3, atol=1e-3)


def test_widths_of_the_paper():
    model = UNet(17)
    assert [level[0].out_channels for level in model.down] == [64, 128, 256, 512, 1024]
    assert [level.conv[0].out_channels for level in model.up] == [512, 256, 128, 64]
    assert model.out.in_channels == 64
    assert sum(p.numel() for p in model.parameters()) == 31_037_521

"""Linear layers by way of a convolution against PyTorch's own in double precision."""
import pytest
import torch
from torch.nn import functional as F

from segment_anything.fast.linear import linear


@pytest.mark.parametrize("shape", [(48, 5), (3, 32, 5), (2, 8, 4, 5), (1, 7, 5)])
@pytest.mark.parametrize("biased", [True, False])
def test_equals_double_precision_row_by_row(shape, biased):
    torch.manual_seed(0)
    rows, weight, bias = torch.randn(shape), torch.randn(3, 5), torch.randn(3) if biased else None
    expected = F.linear(rows.double(), weight.double(), bias.double() if biased else None)
    result = linear(rows, weight, bias)
    assert result.shape == expected.shape and result.is_contiguous()
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


def test_rows_may_be_a_view_and_stay_as_they_are():
    torch.manual_seed(0)
    whole, weight = torch.randn(2, 64, 12), torch.randn(6, 4)
    before = whole.clone()
    torch.testing.assert_close(linear(whole[..., 3:7], weight), whole[..., 3:7] @ weight.T, rtol=1e-5, atol=1e-5)
    assert torch.equal(whole, before)


def test_many_rows_are_left_to_the_convolution(monkeypatch):
    asked = []
    monkeypatch.setattr(F, "conv2d", lambda *args, original=F.conv2d: (asked.append(args[0].shape), original(*args))[1])
    linear(torch.randn(4096, 8), torch.randn(3, 8))
    linear(torch.randn(23, 8), torch.randn(3, 8))
    linear(torch.randn(32, 8, dtype=torch.bfloat16), torch.randn(3, 8, dtype=torch.bfloat16))
    assert asked == [(16, 8, 1, 256)]

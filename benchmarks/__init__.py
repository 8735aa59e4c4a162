"""Measurements of what the stages do."""
from utils.threads import share_machine

share_machine()  # before a benchmark imports PyTorch

"""Trainings of networks."""
from utils.threads import share_machine

share_machine()  # before a training imports PyTorch

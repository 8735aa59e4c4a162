"""Commands, one a file."""
from utils.threads import share_machine

share_machine()  # before a command imports PyTorch

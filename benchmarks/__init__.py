"""Measurements of what the stages do."""
from utils.interrupts import end_quietly_on_interrupt
from utils.threads import share_machine

end_quietly_on_interrupt()
share_machine()  # before a benchmark imports PyTorch

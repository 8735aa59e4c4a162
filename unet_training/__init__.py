"""Trainings of networks."""
from utils.interrupts import end_quietly_on_interrupt
from utils.threads import share_machine

end_quietly_on_interrupt()
share_machine()  # before a training imports PyTorch

"""The accountant that calibration, the report and the command use if none is named."""

from accounting.rdp import RdpAccountant

DefaultAccountant = RdpAccountant

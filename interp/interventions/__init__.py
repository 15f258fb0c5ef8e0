"""Edits as data: what is done to a run, and where; to apply within `model.edit`, to sweep over, to keep in a file."""

from interp.interventions.edits import Ablate, Attend, Edit, Freeze, Patch, Scale, Site, Steer
from interp.interventions.files import load, save

__all__ = ["Ablate", "Attend", "Edit", "Freeze", "Patch", "Scale", "Site", "Steer", "load", "save"]

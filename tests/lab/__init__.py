"""A lab of SSH hosts on one machine, with faults on demand: namespaces and overlays, no containers, no images.

    with Lab(folder, hosts=2) as lab:
        lab.ssh(lab.hosts[0], "hostname")

Everything of a lab lives in one outer set of namespaces (namespaces.py), so that labs do not meet and nothing is left
of one whose process was killed. Root only; `available()` says why a machine cannot have one.
"""

from .controller import Controller
from .host import Host
from .lab import Lab
from .namespaces import LabError, available
from .proxy import Proxy

__all__ = ["Controller", "Host", "Lab", "LabError", "Proxy", "available"]

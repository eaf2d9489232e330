"""Pruning methods: the tables of their names, and the strings that name them."""

from ivc_jax.methods.base import Method, MethodError
from ivc_jax.methods.budget import BudgetError
from ivc_jax.methods.cdpruner import CDPruner
from ivc_jax.methods.coordinates import Coordinates
from ivc_jax.methods.covipal import CoViPAL
from ivc_jax.methods.dart import Dart
from ivc_jax.methods.divprune import DivPrune
from ivc_jax.methods.embedlens import EmbedLens
from ivc_jax.methods.fastervlm import FasterVLM
from ivc_jax.methods.fastv import FastV
from ivc_jax.methods.fitprune import FitPrune
from ivc_jax.methods.foreground import Foreground
from ivc_jax.methods.fsr import FSR
from ivc_jax.methods.hired import HiRED
from ivc_jax.methods.holov import HoloV
from ivc_jax.methods.ivc import IVCPrune
from ivc_jax.methods.ivc_progressive import ProgressiveIVC
from ivc_jax.methods.ivc_removal import IVCRemoval
from ivc_jax.methods.nuwa import Nuwa
from ivc_jax.methods.plugins import PLUGINS, load_file
from ivc_jax.methods.prumerge import PruMerge
from ivc_jax.methods.pyramiddrop import PyramidDrop
from ivc_jax.methods.quota import QuoTA
from ivc_jax.methods.random import Random
from ivc_jax.methods.scope import Scope
from ivc_jax.methods.sparsevlm import SparseVLM
from ivc_jax.methods.spec import describe, parse
from ivc_jax.methods.uniform import Uniform
from ivc_jax.methods.vflowopt import VFlowOpt
from ivc_jax.methods.visiondrop import VisionDrop
from ivc_jax.methods.visionzip import VisionZip
from ivc_jax.methods.vispruner import VisPruner
from ivc_jax.methods.vscan import VScan
from ivc_jax.methods.with_ivc import WithIVC
from ivc_jax.methods.with_pore import WithPoRe
from ivc_jax.methods.with_rope import WithRope

__all__ = [
    "FSR",
    "METHODS",
    "MODIFIERS",
    "PLUGINS",
    "BudgetError",
    "CDPruner",
    "CoViPAL",
    "Coordinates",
    "Dart",
    "DivPrune",
    "EmbedLens",
    "FastV",
    "FasterVLM",
    "FitPrune",
    "Foreground",
    "HiRED",
    "HoloV",
    "IVCPrune",
    "IVCRemoval",
    "Method",
    "MethodError",
    "Nuwa",
    "ProgressiveIVC",
    "PruMerge",
    "PyramidDrop",
    "QuoTA",
    "Random",
    "Scope",
    "SparseVLM",
    "Uniform",
    "VFlowOpt",
    "VScan",
    "VisPruner",
    "VisionDrop",
    "VisionZip",
    "WithIVC",
    "WithPoRe",
    "WithRope",
    "describe",
    "load_file",
    "parse",
]

METHODS: dict[str, type[Method]] = {
    "dense": Method,
    "random": Random,
    "uniform": Uniform,
    "ivc": IVCPrune,
    "ivc_progressive": ProgressiveIVC,
    "ivc_removal": IVCRemoval,
    "fastv": FastV,
    "pyramiddrop": PyramidDrop,
    "sparsevlm": SparseVLM,
    "holov": HoloV,
    "scope": Scope,
    "visiondrop": VisionDrop,
    "visionzip": VisionZip,
    "prumerge": PruMerge,
    "vscan": VScan,
    "fsr": FSR,
    "divprune": DivPrune,
    "cdpruner": CDPruner,
    "covipal": CoViPAL,
    "fitprune": FitPrune,
    "dart": Dart,
    "fastervlm": FasterVLM,
    "hired": HiRED,
    "vispruner": VisPruner,
    "nuwa": Nuwa,
    "vflowopt": VFlowOpt,
    "embedlens": EmbedLens,
    "quota": QuoTA,
}
MODIFIERS: dict[str, type[Method]] = {"ivc": WithIVC, "pore": WithPoRe, "rope": WithRope}

"""Which model answers a request: features of the request, rules, and one pure choice."""

from shardload.routing.check import check_routes
from shardload.routing.choose import AUTO, Candidate, CatalogView, Decision, Residency, choose
from shardload.routing.features import Endpoint, RequestFeatures
from shardload.routing.rules import failed_condition

__all__ = [
    "AUTO",
    "Candidate",
    "CatalogView",
    "Decision",
    "Endpoint",
    "RequestFeatures",
    "Residency",
    "check_routes",
    "choose",
    "failed_condition",
]

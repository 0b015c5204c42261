"""All deployments that are compared; labels are held against those of the first."""

from typing import Final

from perf.topologies import plan_four, plan_one_engine, plan_one_torch, plan_three, plan_two
from perf.topologies.plan import Plan

PLANS: Final[tuple[Plan, ...]] = (
    plan_one_engine.PLAN,
    plan_one_torch.PLAN,
    plan_two.PLAN,
    plan_three.PLAN,
    plan_four.PLAN,
)

"""An SO-101 with physics, for LeRobot's commands: a simulated arm that can lift a cube.

LeRobot imports this package where an option names it::

    lerobot-rollout --robot.discover_packages_path=lerobot_policy_vla0.tools.so101 --robot.type=sim_so_follower ...
    lerobot-eval --env.discover_packages_path=lerobot_policy_vla0.tools.so101 --env.type=so101_pick_lift ...

Importing it registers the environment, the keyboard as a teleoperator, and the robot and camera of ``so101-nexus``,
which it needs (the ``so101`` extra).
"""

from lerobot_policy_vla0.errors import ConfigError

try:
    import so101_nexus  # noqa: F401
except ModuleNotFoundError as error:
    raise ConfigError(
        "the simulated SO-101 needs so101-nexus: pip install 'lerobot_policy_vla0[so101]'"
    ) from error

from lerobot_policy_vla0.tools.so101 import environment, scene
from lerobot_policy_vla0.tools.so101.keyboard import KeyboardHand

scene.register()

# LeRobot looks for a device's class in the package of its configuration.
__all__ = ["KeyboardHand", "environment", "scene"]

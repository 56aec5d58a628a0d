"""``python -m lerobot_policy_vla0.tools.commands`` is the ``vla0`` command."""

from __future__ import annotations

import sys

from lerobot_policy_vla0.tools.commands import main

sys.exit(main())

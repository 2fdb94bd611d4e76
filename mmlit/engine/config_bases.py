"""Make mmengine resolve `mmlit::` config bases and the registry scope `mmlit`.

For `_base_ = 'mmlit::detection/retinanet_lit-s_fpn_1x_coco.py'` mmengine looks the
package up in a table of its own, and gives every dict of that base the scope `mmlit`.

LIT itself is in mmengine's root registry. The rest of mmlit's configs (`RetinaNet`,
`ADE20KDataset`) is mmdet's or mmseg's, so the registries of the scope `mmlit` are empty
and pass requests on to the surrounding scope: the config's `default_scope`.
"""

from typing import Optional, Type

import mmengine.registry
from mmengine.config import utils as config_utils
from mmengine.registry import DefaultScope, Registry

SCOPE = 'mmlit'
# mmengine looks for `.mim` beside this module. For 'mmlit', an installed distribution,
# it would ask the metadata, which are wrong in an editable installation.
LOCATED_BY = 'mmlit.version'


class GuestRegistry(Registry):
    """An empty registry of the scope `mmlit` that looks in the host scope."""

    def get(self, key: str) -> Optional[Type]:
        """Return what `key` names in the host scope, or in mmengine without one."""
        scope = host_scope()
        if scope is None:
            return self.parent.get(key)
        with self.parent.switch_scope_and_registry(scope) as host:
            return host.get(key)


def host_scope() -> Optional[str]:
    """Return the innermost scope that is not `mmlit`, or None."""
    # mmengine's public API returns the innermost scope only.
    stack = getattr(DefaultScope, '_instance_dict', {})
    scopes = [scope.scope_name for scope in stack.values()]
    return next((scope for scope in reversed(scopes) if scope != SCOPE), None)


def register_configs() -> None:
    """Make mmengine resolve `mmlit::` bases; `import mmlit` calls this."""
    # The newer and the older name; without either, only `mmlit::` bases do not work.
    for name in ('MODULE2PACKAGE', 'PKG2PROJECT'):
        getattr(config_utils, name, {}).setdefault(SCOPE, LOCATED_BY)
    for root in list(vars(mmengine.registry).values()):
        if isinstance(root, Registry) and SCOPE not in root.children:
            # Without a location mmengine would look for `mmlit.utils`.
            GuestRegistry(root.name, parent=root, scope=SCOPE, locations=[SCOPE])

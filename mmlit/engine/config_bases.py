"""What `_base_ = 'mmlit::detection/retinanet_lit-s_fpn_1x_coco.py'` needs of mmengine.

mmengine reads bases of the packages in a table of its own, and marks every dict that
comes from one with the package's name as its scope: `mmdet::` bases are built from
mmdet's registries. So `import mmlit` adds mmlit to the table, and registries of the
scope `mmlit`, of which mmengine asks that they are in a module of this name.

LIT itself is in mmengine's root registry. The rest of mmlit's configs (`RetinaNet`,
`ADE20KDataset`) is mmdet's or mmseg's, so these registries hold nothing and pass on
what they are asked to the scope around theirs: the config's `default_scope`.
"""

from typing import Optional, Type

import mmengine.registry
from mmengine.config import utils as config_utils
from mmengine.registry import DefaultScope, Registry

SCOPE = 'mmlit'
# What mmengine looks for `.mim` beside. Not 'mmlit': of an installed distribution it
# takes the folder from the metadata, which in an editable installation is a wrong one,
# while for any other name it asks Python where the module lies.
LOCATED_BY = 'mmlit.version'


class GuestRegistry(Registry):
    """A registry of the scope `mmlit`, empty, whose entries are the host scope's."""

    def get(self, key: str) -> Optional[Type]:
        """Return what `key` names in the host scope, or in mmengine without one."""
        scope = host_scope()
        if scope is None:
            return self.parent.get(key)
        with self.parent.switch_scope_and_registry(scope) as host:
            return host.get(key)


def host_scope() -> Optional[str]:
    """Return the innermost scope that is not `mmlit`, or None."""
    # mmengine tells the innermost of all only; the stack itself is not public.
    stack = getattr(DefaultScope, '_instance_dict', {})
    scopes = [scope.scope_name for scope in stack.values()]
    return next((scope for scope in reversed(scopes) if scope != SCOPE), None)


def register_configs() -> None:
    """Make mmengine resolve `mmlit::` bases; `import mmlit` calls this.

    Calling it again changes nothing.
    """
    # The same table under its newer and its older name. Where mmengine has neither,
    # such bases are all that is missing.
    for name in ('MODULE2PACKAGE', 'PKG2PROJECT'):
        getattr(config_utils, name, {}).setdefault(SCOPE, LOCATED_BY)
    for root in list(vars(mmengine.registry).values()):
        if isinstance(root, Registry) and SCOPE not in root.children:
            # A location: without one mmengine would look for `mmlit.utils`.
            GuestRegistry(root.name, parent=root, scope=SCOPE, locations=[SCOPE])

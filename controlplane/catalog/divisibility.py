"""What a tensor parallel degree must divide. Pure. Sources: vLLM's parallel layers, and its refusals at start."""

from controlplane.catalog.shape import Shape, Stack
from controlplane.catalog.weights import GROUP_SIZE, padded_vocab


def degree_problems(shape: Shape, precision: str, degree: int) -> tuple[str, ...]:
    """Each thing that the degree does not divide, as what was expected; empty when the degree is possible."""
    if degree < 1:
        return ("a degree of at least 1",)
    problems = [*_stack_problems(shape.text, "", degree), *_vocab_problems(shape, degree)]
    if shape.audio is not None:
        problems += _stack_problems(shape.audio.stack, "audio encoder ", degree)
    if shape.vision is not None:
        problems += _stack_problems(shape.vision.stack, "vision ", degree)
    return (*problems, *_group_problems(shape.text, precision, degree))


def _stack_problems(stack: Stack, prefix: str, degree: int) -> list[str]:
    problems = []
    if stack.heads % degree:
        problems.append(f"a divisor of {stack.heads} {prefix}attention heads")
    if stack.kv_heads % degree and degree % stack.kv_heads:
        problems.append(f"a divisor or a multiple of {stack.kv_heads} {prefix}KV heads")
    for name, width in _widths(stack):
        if width % degree:
            problems.append(f"a divisor of {prefix}{name} {width}")
    return problems


def _widths(stack: Stack) -> list[tuple[str, int]]:
    """Matrices that are split along their inner width."""
    experts = stack.experts
    if experts is None:
        return [("intermediate size", stack.intermediate)]
    widths = [("expert size", experts.intermediate)]
    if experts.shared_intermediate:
        widths.append(("shared expert size", experts.shared_intermediate))
    if experts.dense_layers:
        widths.append(("intermediate size", stack.intermediate))
    return widths


def _vocab_problems(shape: Shape, degree: int) -> list[str]:
    padded = padded_vocab(shape)
    return [f"a divisor of the padded vocabulary {padded}"] if padded % degree else []


def _group_problems(stack: Stack, precision: str, degree: int) -> list[str]:
    group = GROUP_SIZE.get(precision)
    if group is None:
        return []
    return [
        f"whole groups of {group} in a GPU's part of {name} {width} ({precision})"
        for name, width in _widths(stack)
        if width % degree == 0 and width // degree % group
    ]

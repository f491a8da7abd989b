"""Guards against plans that are damaged or made up: what they bring, change and take in turn."""

from __future__ import annotations

from tests.mutants.kit import Mutant

GIVEN = "runtime/given.py"
GRAPH = "runtime/given_graph.py"
WEIGHTS = "runtime/given_weights.py"
IMAGES = "runtime/images.py"

MEMORY = "tests/runtime/test_given_memory.py"
NAMED = (f"{MEMORY}::test_what_is_damaged_of_weights_is_named",)
ROWS = "tests/runtime/test_given_images.py"
REFUSED = (f"{ROWS}::test_rows_that_are_none_are_refused",)


def _guard(name: str, file: str, text: str, instead: str, tests: tuple[str, ...] = NAMED) -> Mutant:
    return Mutant("plan", name, file, text, instead, tests)


MUTANTS = [
    _guard(
        "a weight may come after its op", WEIGHTS,
        "and step.index < reader\n", "and reader >= 0\n",
    ),
    _guard(
        "a weight may come from anywhere", WEIGHTS,
        "and (step.src, step.dst, step.device) == (HOST, stay.device, stay.device)\n", "and True\n",
    ),
    _guard(
        "a weight may be copied in any queue, of any size", WEIGHTS,
        "and (step.queue, step.nbytes) == (queue_of(HOST, stay.device), stay.nbytes)\n",
        "and True\n",
    ),
    _guard(
        "the host may bring itself weights", WEIGHTS,
        "and stay.device != HOST\n", "and True\n",
        (f"{MEMORY}::test_the_host_brings_nothing_to_itself",),
    ),
    _guard("a weight need not come", WEIGHTS, "    if stays or sum(", "    if False and sum("),
    _guard(
        "a weight may be of any size", WEIGHTS,
        "if nbytes != stay.nbytes or not known", "if not known",
    ),
    _guard(
        "a weight may have any name", WEIGHTS,
        "if nbytes != stay.nbytes or not known", "if nbytes != stay.nbytes",
    ),
    _guard(
        "more weights may be there than the region holds", WEIGHTS,
        "if not there <= region <=", "if not region <=",
    ),
    _guard(
        "the weights of a plan are believed", GIVEN,
        "check_weights(plan, graph, roots, kernels.lowered)", "pass",
    ),
    _guard(
        "ops need not wait for their weights", GIVEN,
        " + self.arrivals.get(step.index, [])", "",
    ),
    _guard("steps may wait for later ones", GIVEN, "    check_steps(plan)\n", ""),
    _guard("memory and waits are believed", GIVEN, "    if made != plan:", "    if False:"),
    _guard(
        "what nobody makes may be made again", GRAPH,
        "change is not None and edit.name in made.graph.specs", "change is not None",
    ),
    _guard(
        "names may be given twice", GRAPH,
        "    except GraphError as error:", "    except ZeroDivisionError as error:",
        (f"{MEMORY}::test_names_that_the_caller_has_given_are_not_given_again",),
    ),
    _guard(
        "images may read what is not made yet", IMAGES,
        "sound = all(v is None or v in there for v in reads)", "sound = True", REFUSED,
    ),
    _guard(
        "images may pass some ops by", IMAGES,
        "sorted(row.order) != sorted(nodes) or ", "", REFUSED,
    ),
    _guard(
        "a row may be any ops", IMAGES,
        "    if tuple(n.name for n in nodes) != row.ops:\n        return None\n", "", REFUSED,
    ),
    _guard(
        "kernels for an image may lose anything", IMAGES,
        "permission.refuses(found) is None", "True",
        (f"{ROWS}::test_kernels_for_an_image_lose_no_more_than_is_permitted",),
    ),
]  # fmt: skip

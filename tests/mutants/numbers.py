"""Guards of arithmetic, indices, and of what a model's strings may reach."""

from __future__ import annotations

from tests.mutants.kit import Mutant

VECTOR = "kernels/cpu_vector.py"
DIALECT = "devices/dialect.py"
SPECIAL = "tests/kernels/test_special.py"
PROCESSOR = f"{SPECIAL}::test_special_cases_on_the_processor"
OPENCL = f"{SPECIAL}::test_special_cases_on_opencl"
FINITE = "tests/runtime/test_finite.py"
WATCHER = "runtime/finite.py"
BITS = "kernels/ops_bits.py"
NAMES = "tests/runtime/hostile/test_names.py"
RULES = "tests/runtime/loaders/test_onnx_rules.py"
WALK = "tests/runtime/loaders/test_onnx_wire.py"
ERRORS = "tests/runtime/test_errors.py"
EXTENSION = "tests/kernels/test_ops_extension.py"

MUTANTS = [
    # --- NaN and infinity ---
    Mutant(
        "finite",
        "the first op that made a NaN is not told",
        WATCHER,
        "        if not self._found:\n            return\n",
        "        return\n",
        (f"{FINITE}::test_the_first_op_in_graph_order_is_named_with_device_and_kernel",),
    ),
    Mutant(
        "finite",
        "an op that passes a NaN on is blamed",
        WATCHER,
        "            if clean:\n",
        "            if True:\n",
        (f"{FINITE}::test_an_op_that_passes_on_what_was_fed_is_not_blamed",),
    ),
    Mutant(
        "finite",
        "infinities are not looked for",
        WATCHER,
        "    finite = np.isfinite(wide)\n",
        "    finite = ~np.isnan(wide)\n",
        (FINITE,),
    ),
    Mutant(
        "finite",
        "max loses a NaN on the processor",
        VECTOR,
        "        if not is_float(a.kind) or a.plain:\n            return got\n",
        "        return got\n",
        (f"{PROCESSOR}[max]",),
    ),
    Mutant(
        "finite",
        "max loses a NaN in OpenCL",
        DIALECT,
        "#define X_MAX(a, b) (((a) > (b) || (a) != (a)) ? (a) : (b))\n",
        "#define X_MAX(a, b) (((a) > (b)) ? (a) : (b))\n",
        (f"{OPENCL}[max-opencl:0]",),
    ),
    # --- integers ---
    Mutant(
        "integer",
        "division by zero on the processor",
        VECTOR,
        "        bad = zero\n        if is_signed",
        '        bad = self.logic("xor", zero, zero)\n        if is_signed',
        ("tests/kernels/test_traps.py",),
    ),
    Mutant(
        "integer",
        "the least number over -1 on the processor",
        VECTOR,
        '            bad = self.logic("or", zero, self.logic("and", lowest, minus))\n',
        '            bad = self.logic("or", zero, self.logic("and", zero, self.logic("and", lowest, minus)))\n',
        ("tests/kernels/test_traps.py",),
    ),
    Mutant(
        "integer",
        "division by zero in OpenCL",
        DIALECT,
        "#define X_IDIV(a, b) ((b) == 0 ? 0 : X_TRAPS(b) ? X_NEG(a) : (a) / (b))\n",
        "#define X_IDIV(a, b) ((a) / (b))\n",
        ("tests/kernels/test_traps.py",),
    ),
    Mutant(
        "integer",
        "the least number over -1 in OpenCL",
        DIALECT,
        "#define X_TRAPS(b) ((b) == 0 || ((b) < 0 && (b) == -1))\n",
        "#define X_TRAPS(b) ((b) == 0)\n",
        ("tests/kernels/test_traps.py",),
    ),
    Mutant(
        "integer",
        "a remainder by zero in OpenCL",
        DIALECT,
        "#define X_IREM(a, b) (X_TRAPS(b) ? 0 : (a) % (b))\n",
        "#define X_IREM(a, b) ((a) % (b))\n",
        ("tests/kernels/test_traps.py",),
    ),
    Mutant(
        "integer",
        "shifts as far as one likes on the processor",
        VECTOR,
        "        by = self.select(near, b, zero)\n",
        '        by, near = b, self.compare("==", b, b)\n',
        (f"{PROCESSOR}[shift_left]", f"{PROCESSOR}[shift_right]"),
    ),
    Mutant(
        "integer",
        "shifts as far as one likes in OpenCL",
        "kernels/grid_emit.py",
        '    near = f"({unsigned}){y} < {width}u"\n',
        '    near = "1"\n',
        (f"{OPENCL}[shift_left-opencl:0]", f"{OPENCL}[shift_right-opencl:0]"),
        slow=True,
    ),
    Mutant(
        "integer",
        "floats become any integer on the processor",
        VECTOR,
        '        held = self.select(self.compare("<", held, high), held, high)\n',
        "",
        (f"{PROCESSOR}[cast]",),
    ),
    Mutant(
        "integer",
        "floats become any integer in array code",
        "kernels/ops_math.py",
        "    return xp.where(inside, whole, held)\n",
        "    return xp.where(inside, whole, none)\n",
        ("tests/kernels/test_special.py",),
    ),
    Mutant(
        "integer",
        "floats become any integer in OpenCL",
        "kernels/grid_emit.py",
        '    held = f"{text} >= {above} ? {high} : ({kind}){text}"\n',
        '    held = f"({kind}){text}"\n',
        (f"{OPENCL}[cast-opencl:0]",),
    ),
    Mutant(
        "integer",
        "indices out of range in array code",
        "kernels/ops_gather.py",
        "    return xp.clip(xp.where(wide < 0, wide + size, wide), 0, size - 1)\n",
        "    return xp.where(wide < 0, wide + size, wide)\n",
        ("tests/kernels/test_ops.py",),
    ),
    Mutant(
        "integer",
        "indices out of range on the processor",
        "kernels/cpu_copy_loops.py",
        "        index = code.greatest(code.least(wrapped, last), 0)\n",
        "        index = wrapped\n",
        ("tests/kernels/test_cpu_copy.py", "tests/kernels/test_cpu.py"),
    ),
    Mutant(
        "integer",
        "indices out of range in OpenCL",
        "kernels/grid_gather.py",
        "    return from_end < 0 ? 0 : from_end >= size ? size - 1 : (i32)from_end;\n",
        "    return (i32)from_end;\n",
        ("tests/kernels/test_grid_move.py::test_indices_wrap_once_and_are_clamped",),
    ),
    Mutant(
        "integer",
        "indices below the range in OpenCL",
        "kernels/grid_gather.py",
        "    return from_end < 0 ? 0 : from_end >= size",
        "    return from_end >= size",
        ("tests/kernels/test_grid_move.py::test_indices_wrap_once_and_are_clamped",),
    ),
    # --- strings of a model ---
    Mutant(
        "source",
        "a choice is any word",
        "kernels/ops_rules.py",
        '    if value not in allowed:\n        raise fail(op, f"{name} must be one of',
        '    if False:\n        raise fail(op, f"{name} must be one of',
        ("tests/runtime/test_builder.py", "tests/kernels/test_ops_rules.py"),
    ),
    Mutant(
        "source",
        "an operator of any name is looked up",
        "runtime/loaders/onnx_check.py",
        "            if reason:\n                problems",
        "            if False:\n                problems",
        (
            "tests/runtime/loaders/test_onnx_structure.py::test_everything_unsupported_is_named_at_once",
        ),
    ),
    Mutant(
        "source",
        "a mode is any word",
        "runtime/loaders/onnx_index.py",
        '    if mode != "constant" and mode != "wrap" and mode not in PAD_MODES:\n',
        "    if False:\n",
        (f"{RULES}::test_a_choice_is_one_of_the_operators_words",),
    ),
    Mutant(
        "source",
        "a choice of an operator is any word",
        "runtime/loaders/onnx_model.py",
        "        if found not in words:\n",
        "        if False:\n",
        (f"{RULES}::test_a_choice_is_one_of_the_operators_words",),
    ),
    Mutant(
        "source",
        "an equation holds any characters",
        "runtime/loaders/onnx_einsum.py",
        '            raise BadEquation(f"{what} has {letter!r}, which is no letter")\n',
        "            continue\n",
        ("tests/runtime/loaders/test_onnx_einsum.py",),
    ),
    Mutant(
        "source",
        "a NaN is written as Python writes it",
        "kernels/grid_emit.py",
        '    if math.isnan(number):\n        return f"(({kind})NAN)"\n',
        "",
        (
            "tests/kernels/test_grid_elementwise.py::test_literals_have_the_type_they_meet",
            "tests/kernels/test_expression.py",
        ),
    ),
    # --- names ---
    Mutant(
        "names",
        "names of values that are equal are one",
        "runtime/operand.py",
        '            if (name := f"{stem}_{number}") not in self.used:\n',
        '            if name := f"{stem}_{number}":\n',
        ("tests/runtime/test_builder.py::test_names_that_are_taken_are_not_given_again",),
    ),
    Mutant(
        "errors",
        "names in messages are not cut",
        "runtime/loaders/onnx_model.py",
        '    cut = name if len(name) <= 80 else f"{name[:77]}..."\n',
        "    cut = name\n",
        (f"{WALK}::test_names_in_messages_are_escaped_and_cut",),
    ),
    Mutant(
        "names",
        "a label that stands twice names two nodes",
        "runtime/loaders/onnx_parse.py",
        "        if name and self.taken[name] == 1:\n",
        "        if name:\n",
        (f"{RULES}::test_nodes_of_one_name_are_told_apart",),
    ),
    Mutant(
        "errors",
        "messages are as they are",
        "runtime/errors.py",
        "    if not text.isprintable():\n",
        "    if False:\n",
        (f"{ERRORS}::test_a_message_is_one_line_that_prints",),
    ),
    Mutant(
        "errors",
        "messages are as long as they are",
        "runtime/errors.py",
        "    if len(text) > LONGEST:\n",
        "    if False:\n",
        (f"{ERRORS}::test_a_message_is_one_line_that_prints",),
    ),
    Mutant(
        "errors",
        "a bare KeyError comes out of a load",
        "runtime/loaders/onnx_convert.py",
        "        except (ArithmeticError, LookupError, TypeError, ValueError) as error:\n            raise self.error(node, error) from error\n        self.bind",
        "        except (ArithmeticError, TypeError, ValueError) as error:\n            raise self.error(node, error) from error\n        self.bind",
        (f"{ERRORS}::test_no_bare_error_comes_out_of_a_load",),
    ),
    Mutant(
        "errors",
        "a bare IndexError comes out of a function of the host",
        "runtime/loaders/onnx_host.py",
        "    except Exception as error:\n        raise ExecutionError(",
        "    except EOFError as error:\n        raise ExecutionError(",
        (f"{ERRORS}::test_no_bare_error_comes_out_of_a_function_of_the_host",),
    ),
    Mutant(
        "errors",
        "a bare error comes out of a run",
        "runtime/executor.py",
        "            raise failed(self.program, error) from error\n        finally:\n            self._release()\n",
        "            raise\n        finally:\n            self._release()\n",
        (
            "tests/runtime/test_executor_faults.py::test_what_is_no_error_of_ours_is_wrapped_with_its_cause",
            "tests/runtime/test_executor_faults.py::test_the_same_on_the_host_alone",
        ),
    ),
    Mutant(
        "errors",
        "a bare error comes out of a short run",
        "runtime/direct.py",
        "            raise failed(self._program, error) from error\n",
        "            raise\n",
        (
            "tests/runtime/test_direct.py",
            "tests/runtime/test_executor_faults.py::test_the_same_on_the_host_alone",
        ),
    ),
]

"""Guards of what is kept on disk."""

from __future__ import annotations

from tests.mutants.kit import Mutant

KEPT = "runtime/kept.py"
RECORDS = "tests/runtime/test_records.py"
CACHE = "tests/devices/test_cpu_cache.py"
COSTS = "tests/runtime/test_costing.py"
PROBE = "tests/devices/test_probe.py"

MUTANTS = [
    # --- no room, no permission ---
    Mutant(
        "disk",
        "a file that cannot be written ends the run",
        KEPT,
        "    except OSError as error:\n        _drop(made)\n",
        "    except EOFError as error:\n        _drop(made)\n",
        (f"{RECORDS}::test_a_full_disk_is_done_without",),
    ),
    Mutant(
        "disk",
        "a warning at every file",
        KEPT,
        "    if root in _WARNED:\n        return\n",
        "",
        (f"{RECORDS}::test_a_folder_that_cannot_be_had_is_done_without",),
    ),
    Mutant(
        "disk",
        "no warning",
        KEPT,
        "    if root in _WARNED:\n        return\n",
        "    return\n",
        (f"{RECORDS}::test_a_folder_that_cannot_be_had_is_done_without",),
    ),
    Mutant(
        "disk",
        "a folder that cannot be made ends the run",
        KEPT,
        "        except OSError as error:\n            _warn(folder,",
        "        except EOFError as error:\n            _warn(folder,",
        (f"{CACHE}::test_a_folder_that_cannot_be_made_is_done_without",),
    ),
    Mutant(
        "disk",
        "a cache folder that cannot be made ends the run",
        "runtime/settings.py",
        "    except OSError:\n        return None\n    return path",
        "    except EOFError:\n        return None\n    return path",
        (f"{RECORDS}::test_a_folder_that_cannot_be_had_is_done_without",),
    ),
    Mutant(
        "disk",
        "the folder grows without a bound",
        KEPT,
        "            if total + nbytes <= most:\n                break\n",
        "            break\n",
        (f"{RECORDS}::test_the_least_lately_used_make_room",),
    ),
    # --- damage ---
    Mutant(
        "damage",
        "content is not held against its digest",
        KEPT,
        "        if len(found) <= self.limit and digest == digest_of(name, content):\n",
        "        if len(found) <= self.limit:\n",
        (f"{CACHE}::test_code_kept_for_something_else_is_deleted",),
    ),
    Mutant(
        "damage",
        "the digest says nothing of the name",
        KEPT,
        'hashlib.sha256(name.encode() + b"\\0" + content)',
        "hashlib.sha256(content)",
        (f"{CACHE}::test_code_kept_for_something_else_is_deleted",),
    ),
    Mutant(
        "damage",
        "a description is not held against its digest",
        "runtime/record_file.py",
        "        if digest_of(name, text) != head[:DIGEST]:\n",
        "        if False:\n",
        (f"{RECORDS}::test_damage_means_making_it_anew",),
    ),
    Mutant(
        "damage",
        "weights are not held against their checksums",
        "runtime/record_file.py",
        "                if got != target.nbytes or zlib.crc32(target.data) != check:\n",
        "                if got != target.nbytes:\n",
        (f"{RECORDS}::test_damage_means_making_it_anew",),
    ),
    Mutant(
        "damage",
        "the size of a description has no bound",
        "runtime/record_file.py",
        "        if len(head) != HEAD or size > MOST:\n",
        "        if len(head) != HEAD:\n",
        (RECORDS,),
    ),
    Mutant(
        "damage",
        "links are followed",
        KEPT,
        '        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) |',
        "        flags = os.O_RDONLY |",
        (f"{RECORDS}::test_damage_means_making_it_anew",),
    ),
    Mutant(
        "damage",
        "files that others can write to are read",
        KEPT,
        "        if not _private(os.fstat(descriptor), stat.S_ISREG):\n",
        "        if False:\n",
        (f"{RECORDS}::test_damage_means_making_it_anew",),
    ),
    Mutant(
        "damage",
        "folders that others can write to are used",
        KEPT,
        "    return kind(status.st_mode) and own and not status.st_mode & 0o022\n",
        "    return kind(status.st_mode)\n",
        (f"{RECORDS}::test_a_folder_of_somebody_else_is_not_used",),
    ),
    Mutant(
        "damage",
        "a damaged record ends the process",
        "runtime/records.py",
        "    except Damaged as error:\n",
        "    except EOFError as error:\n",
        (f"{RECORDS}::test_damage_means_making_it_anew",),
    ),
    Mutant(
        "damage",
        "damaged files stay",
        KEPT,
        "        path.unlink()\n",
        "        pass\n",
        (f"{CACHE}::test_code_kept_for_something_else_is_deleted", COSTS),
    ),
    Mutant(
        "damage",
        "nothing is said of damage",
        KEPT,
        '    logging.getLogger("crossdock").debug(\n',
        "    str(\n",
        (f"{CACHE}::test_code_kept_for_something_else_is_deleted", COSTS),
    ),
    Mutant(
        "damage",
        "costs and profiles are not held against their digests",
        KEPT,
        "    if data[:_SEALED] != sealed(text)[:_SEALED]:\n",
        "    if False:\n",
        (f"{COSTS}::test_a_damaged_file_is_deleted_and_made_anew",),
    ),
    # --- several processes ---
    Mutant(
        "shared",
        "files are written in place",
        KEPT,
        '        descriptor, name = tempfile.mkstemp(dir=place.parent, prefix="new-")\n',
        "        descriptor, name = os.open(place, os.O_WRONLY | os.O_CREAT, 0o600), str(place)\n",
        (
            f"{RECORDS}::test_writers_and_readers_at_once_see_whole_files",
            f"{CACHE}::test_eight_processes_build_while_a_ninth_damages_their_cache",
        ),
    ),
    Mutant(
        "shared",
        "files stay under the name that they are written to",
        KEPT,
        "        made.replace(place)\n",
        "        pass\n",
        (RECORDS, CACHE),
    ),
    Mutant(
        "shared",
        "a file that another process has deleted ends the run",
        KEPT,
        "        except OSError:  # another process deletes, too\n",
        "        except EOFError:\n",
        (RECORDS, CACHE),
    ),
    Mutant(
        "shared",
        "costs that another process measured are lost",
        "runtime/costing.py",
        "        _add_missing(data, self._kept() or {})\n",
        "",
        (COSTS,),
    ),
]

"""The compiled loops that walk a table of native steps: alone, leading others, helping.

A leader puts its program where helpers look, a *post*, and wakes those that sleep. A helper looks
for a while, then sleeps in a read of a counter that the system keeps; so neither burns the
processor between runs nor needs the interpreter lock to begin. A program may be given back as soon
as its leader returns: the leader takes it off the post, and waits for the helpers that are at the
post, which takes them some instructions, and for those inside the program.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import re
import time
from dataclasses import dataclass
from typing import Any

from crossdock.devices.cpu_llvm import compile_ir

_DRIVER = """
declare i32 @sched_yield()
declare i32 @clock_gettime(i32, ptr)
declare i64 @read(i32, ptr, i64)
declare i64 @write(i32, ptr, i64)

; The monotonic clock, as seconds and nanoseconds, into pair %i of a table.
define internal void @stamp(ptr %stamps, i64 %i) {
entry:
  %word = mul i64 %i, 2
  %at = getelementptr i64, ptr %stamps, i64 %word
  %ignored = call i32 @clock_gettime(i32 CLOCK, ptr %at)
  ret void
}

; The loops take one address, of seven words: table, number of steps, state, time stamps, post,
; threads, and words from one row of counters to the next.
define void @xd_serial(ptr noalias %call) {
entry:
  %table = load ptr, ptr %call
  %n.at = getelementptr i64, ptr %call, i64 1
  %n = load i64, ptr %n.at
  %state.at = getelementptr i64, ptr %call, i64 2
  %state = load ptr, ptr %state.at
  %stop.at = getelementptr i64, ptr %state, i64 1
  %stamps.at = getelementptr i64, ptr %call, i64 3
  %stamps = load ptr, ptr %stamps.at
  STAMP(0)
  br label %look
look:
  %i = phi i64 [0, %entry], [%next, %loop]
  %stop = load atomic i64, ptr %stop.at monotonic, align 8
  %go = icmp eq i64 %stop, 0
  %more = icmp slt i64 %i, %n
  %on = and i1 %go, %more
  br i1 %on, label %loop, label %done
loop:
  %row = mul i64 %i, 5
  %p0 = getelementptr i64, ptr %table, i64 %row
  %p1 = getelementptr i64, ptr %p0, i64 1
  %p2 = getelementptr i64, ptr %p0, i64 2
  %w0 = load i64, ptr %p0
  %w1 = load i64, ptr %p1
  %extent = load i64, ptr %p2
  %fn = inttoptr i64 %w0 to ptr
  %args = inttoptr i64 %w1 to ptr
  call void %fn(ptr %args, i64 0, i64 %extent)
  %next = add i64 %i, 1
  STAMP(%next)
  br label %look
done:
  ret void
}

define internal void @relax(i64 %spins) {
entry:
  %often = and i64 %spins, 127
  %give = icmp eq i64 %often, 127
  br i1 %give, label %yield, label %pause
yield:
  %ignored = call i32 @sched_yield()
  ret void
pause:
  call void asm sideeffect "PAUSE", "~{memory}"()
  ret void
}

; Claim chunks of step %i until there are none left. The chunks are as many ranges as there are
; threads; thread %who begins with its own, so that it goes on where it worked in the step before
; and finds in its caches what it made there, and then helps with the others. Counters: for each
; range a row of chunks claimed, by step, then a row of chunks complete; rows are whole cache lines.
define internal void @share(ptr %call, i64 %i, i64 %who) {
entry:
  %table = load ptr, ptr %call
  %state.at = getelementptr i64, ptr %call, i64 2
  %state = load ptr, ptr %state.at
  %counters = getelementptr i64, ptr %state, i64 16
  %ranges.at = getelementptr i64, ptr %call, i64 5
  %ranges = load i64, ptr %ranges.at
  %pitch.at = getelementptr i64, ptr %call, i64 6
  %pitch = load i64, ptr %pitch.at
  %row = mul i64 %i, 5
  %p0 = getelementptr i64, ptr %table, i64 %row
  %p1 = getelementptr i64, ptr %p0, i64 1
  %p2 = getelementptr i64, ptr %p0, i64 2
  %p3 = getelementptr i64, ptr %p0, i64 3
  %p4 = getelementptr i64, ptr %p0, i64 4
  %w0 = load i64, ptr %p0
  %w1 = load i64, ptr %p1
  %extent = load i64, ptr %p2
  %size = load i64, ptr %p3
  %chunks = load i64, ptr %p4
  %fn = inttoptr i64 %w0 to ptr
  %args = inttoptr i64 %w1 to ptr
  br label %range
range:
  %k = phi i64 [0, %entry], [%k1, %empty]
  %made = phi i64 [0, %entry], [%made1, %empty]
  %some = icmp slt i64 %k, %ranges
  br i1 %some, label %enter, label %done
enter:
  %sum = add i64 %who, %k
  %r = urem i64 %sum, %ranges
  %low.all = mul i64 %r, %chunks
  %low = udiv i64 %low.all, %ranges
  %high.all = add i64 %low.all, %chunks
  %high = udiv i64 %high.all, %ranges
  %count = sub i64 %high, %low
  %before = mul i64 %r, %pitch
  %word = add i64 %before, %i
  %claimed = getelementptr i64, ptr %counters, i64 %word
  br label %claim
claim:
  %made1 = phi i64 [%made, %enter], [%made2, %run]
  %c = atomicrmw add ptr %claimed, i64 1 acq_rel
  %mine = icmp slt i64 %c, %count
  br i1 %mine, label %run, label %empty
run:
  %chunk = add i64 %low, %c
  %begin = mul i64 %chunk, %size
  %far = add i64 %begin, %size
  %over = icmp sgt i64 %far, %extent
  %end = select i1 %over, i64 %extent, i64 %far
  call void %fn(ptr %args, i64 %begin, i64 %end)
  %made2 = add i64 %made1, 1
  br label %claim
empty:
  %k1 = add i64 %k, 1
  br label %range
done:
  %all = mul i64 %ranges, %pitch
  %last = add i64 %all, %i
  %complete = getelementptr i64, ptr %counters, i64 %last
  %old = atomicrmw add ptr %complete, i64 %made acq_rel
  ret void
}

; A post has its words in cache lines of their own: 0 the number of programs put there so far, 8 the
; program (or 0), 16 the helpers that look at it, 24 those that are about to sleep, 32 whether it is
; closed, 40 and 41 the files that the counter is read and written by, 42 looks before a sleep, and
; 43 a one.
define internal void @call_helpers(ptr %call, ptr %post) {
entry:
  %slot = getelementptr i64, ptr %post, i64 8
  %asleep = getelementptr i64, ptr %post, i64 24
  %file.at = getelementptr i64, ptr %post, i64 41
  %one = getelementptr i64, ptr %post, i64 43
  %address = ptrtoint ptr %call to i64
  store atomic i64 %address, ptr %slot seq_cst, align 8
  %turn = atomicrmw add ptr %post, i64 1 seq_cst
  %count = atomicrmw xchg ptr %asleep, i64 0 seq_cst
  %word = load i64, ptr %file.at
  %file = trunc i64 %word to i32
  br label %look
look:
  %k = phi i64 [0, %entry], [%next, %wake]
  %more = icmp slt i64 %k, %count
  br i1 %more, label %wake, label %done
wake:
  %ignored = call i64 @write(i32 %file, ptr %one, i64 8)
  %next = add i64 %k, 1
  br label %look
done:
  ret void
}

; Take the program off the post, unless another is there, and wait for who may have seen it.
define internal void @dismiss(ptr %call, ptr %post) {
entry:
  %slot = getelementptr i64, ptr %post, i64 8
  %looking = getelementptr i64, ptr %post, i64 16
  %address = ptrtoint ptr %call to i64
  %old = cmpxchg ptr %slot, i64 %address, i64 0 seq_cst seq_cst
  br label %wait
wait:
  %spins = phi i64 [0, %entry], [%spins1, %idle]
  %who = load atomic i64, ptr %looking seq_cst, align 8
  %none = icmp eq i64 %who, 0
  br i1 %none, label %done, label %idle
idle:
  call void @relax(i64 %spins)
  %spins1 = add i64 %spins, 1
  br label %wait
done:
  ret void
}

; What a helper does from beginning to end; returns when the post is closed or cannot be read.
define void @xd_crew(ptr %post) {
entry:
  %slot = getelementptr i64, ptr %post, i64 8
  %looking = getelementptr i64, ptr %post, i64 16
  %asleep = getelementptr i64, ptr %post, i64 24
  %closed = getelementptr i64, ptr %post, i64 32
  %file.at = getelementptr i64, ptr %post, i64 40
  %word = load i64, ptr %file.at
  %file = trunc i64 %word to i32
  %most.at = getelementptr i64, ptr %post, i64 42
  %most = load i64, ptr %most.at
  %room = alloca i64
  br label %look
look:
  %spins = phi i64 [0, %entry], [0, %out], [%spins1, %rest], [0, %woken], [0, %missed]
  %seen = phi i64 [0, %entry], [%turn, %out], [%seen, %rest], [%seen, %woken], [%seen, %missed]
  %shut = load atomic i64, ptr %closed seq_cst, align 8
  %end = icmp ne i64 %shut, 0
  br i1 %end, label %done, label %open
open:
  %turn = load atomic i64, ptr %post seq_cst, align 8
  %same = icmp eq i64 %turn, %seen
  br i1 %same, label %idle, label %enter
enter:
  %before = atomicrmw add ptr %looking, i64 1 seq_cst
  %address = load atomic i64, ptr %slot seq_cst, align 8
  %there = icmp ne i64 %address, 0
  br i1 %there, label %take, label %pass
pass:
  %after0 = atomicrmw sub ptr %looking, i64 1 seq_cst
  br label %out
take:
  %call = inttoptr i64 %address to ptr
  %state.at = getelementptr i64, ptr %call, i64 2
  %state = load ptr, ptr %state.at
  %inside = getelementptr i64, ptr %state, i64 8
  %came = atomicrmw add ptr %inside, i64 1 seq_cst
  %after = atomicrmw sub ptr %looking, i64 1 seq_cst
  %who = add i64 %came, 1
  call void @help(ptr %call, i64 %who)
  br label %out
out:
  br label %look
idle:
  %spins1 = add i64 %spins, 1
  %tired = icmp sgt i64 %spins1, %most
  br i1 %tired, label %sleep, label %rest
rest:
  call void @relax(i64 %spins)
  br label %look
sleep:
  %sleepers = atomicrmw add ptr %asleep, i64 1 seq_cst
  %again = load atomic i64, ptr %post seq_cst, align 8
  %still = icmp eq i64 %again, %seen
  br i1 %still, label %wait, label %missed
missed:
  br label %look
wait:
  %got = call i64 @read(i32 %file, ptr %room, i64 8)
  %sound = icmp eq i64 %got, 8
  br i1 %sound, label %woken, label %done
woken:
  br label %look
done:
  ret void
}

; State: word 0 the current step, word 1 set to stop, word 8 the helpers inside, words 16... the
; counters.
define void @xd_lead(ptr %call) {
entry:
  %table = load ptr, ptr %call
  %n.at = getelementptr i64, ptr %call, i64 1
  %n = load i64, ptr %n.at
  %state.at = getelementptr i64, ptr %call, i64 2
  %state = load ptr, ptr %state.at
  %stamps.at = getelementptr i64, ptr %call, i64 3
  %stamps = load ptr, ptr %stamps.at
  %stop.at = getelementptr i64, ptr %state, i64 1
  %post.at = getelementptr i64, ptr %call, i64 4
  %post = load ptr, ptr %post.at
  %inside = getelementptr i64, ptr %state, i64 8
  %counters = getelementptr i64, ptr %state, i64 16
  %ranges.at = getelementptr i64, ptr %call, i64 5
  %ranges = load i64, ptr %ranges.at
  %pitch.at = getelementptr i64, ptr %call, i64 6
  %pitch = load i64, ptr %pitch.at
  %results = mul i64 %ranges, %pitch
  %words = add i64 %results, %pitch
  br label %clear
clear:
  %k = phi i64 [0, %entry], [%knext, %clearing]
  %unclear = icmp slt i64 %k, %words
  br i1 %unclear, label %clearing, label %open
clearing:
  %q = getelementptr i64, ptr %counters, i64 %k
  store atomic i64 0, ptr %q monotonic, align 8
  %knext = add i64 %k, 1
  br label %clear
open:
  store atomic i64 0, ptr %state release, align 8
  STAMP(0)
  call void @call_helpers(ptr %call, ptr %post)
  br label %step
step:
  %i = phi i64 [0, %open], [%next, %advance]
  %stop = load atomic i64, ptr %stop.at monotonic, align 8
  %go = icmp eq i64 %stop, 0
  %more = icmp slt i64 %i, %n
  %on = and i1 %go, %more
  br i1 %on, label %look, label %close
look:
  %row = mul i64 %i, 5
  %p0 = getelementptr i64, ptr %table, i64 %row
  %p1 = getelementptr i64, ptr %p0, i64 1
  %p2 = getelementptr i64, ptr %p0, i64 2
  %p4 = getelementptr i64, ptr %p0, i64 4
  %chunks = load i64, ptr %p4
  %single = icmp sle i64 %chunks, 1
  br i1 %single, label %alone, label %shared
alone:
  %w0 = load i64, ptr %p0
  %w1 = load i64, ptr %p1
  %extent = load i64, ptr %p2
  %fn = inttoptr i64 %w0 to ptr
  %args = inttoptr i64 %w1 to ptr
  call void %fn(ptr %args, i64 0, i64 %extent)
  br label %advance
shared:
  call void @share(ptr %call, i64 %i, i64 0)
  %last = add i64 %results, %i
  %complete = getelementptr i64, ptr %counters, i64 %last
  br label %wait
wait:
  %spins = phi i64 [0, %shared], [%spins1, %idle]
  %got = load atomic i64, ptr %complete acquire, align 8
  %all = icmp sge i64 %got, %chunks
  br i1 %all, label %advance, label %idle
idle:
  call void @relax(i64 %spins)
  %spins1 = add i64 %spins, 1
  br label %wait
advance:
  %next = add i64 %i, 1
  STAMP(%next)
  store atomic i64 %next, ptr %state release, align 8
  br label %step
close:
  store atomic i64 %n, ptr %state seq_cst, align 8
  call void @dismiss(ptr %call, ptr %post)
  br label %leave
leave:
  %spins2 = phi i64 [0, %close], [%spins3, %idle2]
  %left = load atomic i64, ptr %inside seq_cst, align 8
  %empty = icmp eq i64 %left, 0
  br i1 %empty, label %done, label %idle2
idle2:
  call void @relax(i64 %spins2)
  %spins3 = add i64 %spins2, 1
  br label %leave
done:
  ret void
}

; Take part in a program, as one that is counted inside; %who is a number from 1 on.
define internal void @help(ptr %call, i64 %who) {
entry:
  %table = load ptr, ptr %call
  %n.at = getelementptr i64, ptr %call, i64 1
  %n = load i64, ptr %n.at
  %state.at = getelementptr i64, ptr %call, i64 2
  %state = load ptr, ptr %state.at
  %inside = getelementptr i64, ptr %state, i64 8
  br label %look
look:
  %spins = phi i64 [0, %entry], [0, %shared], [%spins1, %idle]
  %last = phi i64 [-1, %entry], [%i, %shared], [%last, %idle]
  %i = load atomic i64, ptr %state seq_cst, align 8
  %open = icmp slt i64 %i, %n
  br i1 %open, label %step, label %done
step:
  %row = mul i64 %i, 5
  %row4 = add i64 %row, 4
  %p4 = getelementptr i64, ptr %table, i64 %row4
  %chunks = load i64, ptr %p4
  %several = icmp sgt i64 %chunks, 1
  %fresh = icmp ne i64 %i, %last
  %join = and i1 %several, %fresh
  br i1 %join, label %shared, label %idle
shared:
  call void @share(ptr %call, i64 %i, i64 %who)
  br label %look
idle:
  call void @relax(i64 %spins)
  %spins1 = add i64 %spins, 1
  br label %look
done:
  %after = atomicrmw sub ptr %inside, i64 1 seq_cst
  ret void
}
"""

_PAUSE = {"x86_64": "pause", "amd64": "pause", "aarch64": "yield", "arm64": "yield"}


@dataclass(frozen=True)
class Loops:
    """The compiled loops; each takes the address of a program's words, ``crew`` of a post.

    ``brief`` is ``serial`` for programs that are done sooner than the interpreter lock is let go
    and taken again: it keeps the lock.
    """

    serial: Any
    brief: Any
    lead: Any
    crew: Any


@functools.cache
def loops(timed: bool) -> Loops:
    """The loops; the ``timed`` ones note the clock before the first step and after each."""
    text = _DRIVER.replace("PAUSE", _PAUSE.get(platform.machine().lower(), "nop"))
    text = text.replace("CLOCK", str(time.CLOCK_MONOTONIC))
    stamp = r"call void @stamp(ptr %stamps, i64 \1)" if timed else ""
    text = re.sub(r"STAMP\((\S+)\)", stamp, text)
    names = [f"xd_{what}{'_timed' * timed}" for what in ("serial", "lead", "crew")]
    for name in names:
        text = text.replace(f"@{name.removesuffix('_timed')}(", f"@{name}(")
    # No types to convert to: arguments are ctypes' own already.
    loop, locked = ctypes.CFUNCTYPE(None), ctypes.PYFUNCTYPE(None)
    serial, lead, crew = compile_ir(text, names)
    return Loops(loop(serial), locked(serial), loop(lead), loop(crew))

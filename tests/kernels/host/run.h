// Runs the kernels that stand before this file, as a file of jobs says: see tests/kernels/host_run.py
// for its form. Every array is a block of the heap of its exact size.
#include <dlfcn.h>
#include <sanitizer/common_interface_defs.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <utility>
#include <vector>

static void x_fail(const char *what) {
    fprintf(stderr, "HOST: %s\n", what);
    exit(3);
}

// --- fibers --------------------------------------------------------------------------------------

enum { X_STACK = 1 << 18, X_MOST = 1024 };
struct x_fiber {
    ucontext_t at;
    char *stack;
    void *fake;
    unsigned long long lane[2];
    unsigned shuffles;
    int line;
    bool shuffles_now, done;
};

// The sanitizer's own swapcontext forgets what it knows of the stack that is gone to.
static int (*x_swap)(ucontext_t *, const ucontext_t *) =
    (int (*)(ucontext_t *, const ucontext_t *))dlsym(dlopen("libc.so.6", RTLD_LAZY), "swapcontext");
static std::vector<x_fiber> x_fibers;
static unsigned x_items;
static x_fiber *x_now;
static ucontext_t x_main;
static void *x_main_fake;
static const void *x_main_stack;
static size_t x_main_size;
static struct x_call *x_what;

static void x_leave(bool done) {
    __sanitizer_start_switch_fiber(done ? nullptr : &x_now->fake, x_main_stack, x_main_size);
    x_swap(&x_now->at, &x_main);
    __sanitizer_finish_switch_fiber(x_now->fake, nullptr, nullptr);
}

void x_barrier(int line) {
    if (!x_now) x_fail("a barrier in a kernel that was said to have none");
    x_now->line = line;
    x_leave(false);
}

// A lane leaves what it has and takes what another one left; it may have left its next value, too.
unsigned long long x_shuffle(unsigned long long bits, int gap, int line) {
    if (!x_now) x_fail("a shuffle in a kernel that was said to have none");
    if (gap < 0 || gap > 31) x_fail("a shuffle past the sub-group");
    const unsigned turn = x_now->shuffles++ % 2;
    x_now->lane[turn] = bits;
    x_now->line = line;
    x_now->shuffles_now = true;
    x_leave(false);
    x_now->shuffles_now = false;
    const unsigned own = x_now - x_fibers.data(), other = own / 32 * 32 + (own % 32 ^ gap);
    return other < x_items ? x_fibers[other].lane[turn] : ~0ull;
}

// --- calls ---------------------------------------------------------------------------------------

union x_word { void *pointer; uint64_t bits; };
struct x_call { void (*invoke)(const x_word *); const x_word *words; };

template <class T> struct x_code;
template <class T> struct x_code<T *> { static const char value = 'p'; };
#define X_CODE(T, c) template <> struct x_code<T> { static const char value = c; };
X_CODE(signed char, 'b') X_CODE(unsigned char, 'B') X_CODE(short, 'h') X_CODE(unsigned short, 'H')
X_CODE(int, 'i') X_CODE(unsigned, 'I') X_CODE(long long, 'l') X_CODE(unsigned long long, 'L')
X_CODE(float, 'f') X_CODE(double, 'd')

template <class T> static T x_value(const x_word &word) {
    T value;
    memcpy(&value, &word, sizeof value);
    return value;
}

struct x_kernel { const char *codes; void (*invoke)(const x_word *); bool waits; };

template <class F> struct x_of;
template <class... P> struct x_of<void (*)(P...)> {
    static constexpr char codes[] = {x_code<P>::value..., 0};
    template <void (*f)(P...), size_t... I>
    static void spread(const x_word *words, std::index_sequence<I...>) {
        f(x_value<P>(words[I])...);
    }
    template <void (*f)(P...)> static void invoke(const x_word *words) {
        spread<f>(words, std::index_sequence_for<P...>());
    }
};
#define X_KERNEL(f, waits) {x_of<decltype(&f)>::codes, x_of<decltype(&f)>::invoke<&f>, waits}
extern const x_kernel x_kernels[];

static void x_enter() {
    __sanitizer_finish_switch_fiber(nullptr, &x_main_stack, &x_main_size);
    x_what->invoke(x_what->words);
    x_now->done = true;
    x_leave(true);
}

// --- a launch ------------------------------------------------------------------------------------

extern char __start_x_shared[] __attribute__((weak));
extern char __stop_x_shared[] __attribute__((weak));

// NaN in the parts that are no red zones of the sanitizer's.
__attribute__((no_sanitize("address", "undefined"))) static void x_spoil() {
    for (char *p = __start_x_shared; p < __stop_x_shared; ++p) *p = (char)0xff;
}

static x_dim3 x_place(unsigned i, x_dim3 n) { return {i % n.x, i / n.x % n.y, i / n.x / n.y}; }

static void x_start(x_fiber &fiber) {
    if (!fiber.stack) {
        void *made = mmap(nullptr, X_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (made == MAP_FAILED) x_fail("no memory for a stack");
        fiber.stack = (char *)made;
    }
    getcontext(&fiber.at);
    fiber.at.uc_stack.ss_sp = fiber.stack;
    fiber.at.uc_stack.ss_size = X_STACK;
    fiber.at.uc_link = nullptr;
    makecontext(&fiber.at, x_enter, 0);
    fiber.done = fiber.shuffles_now = false;
    fiber.line = fiber.shuffles = 0;
}

static void x_resume(unsigned i) {
    threadIdx = x_place(i, blockDim);
    x_now = &x_fibers[i];
    __sanitizer_start_switch_fiber(&x_main_fake, x_now->stack, X_STACK);
    x_swap(&x_main, &x_now->at);
    __sanitizer_finish_switch_fiber(x_main_fake, nullptr, nullptr);
    x_now = nullptr;
}

// All work items from one to another have to be at the same place.
static void x_together(unsigned first, unsigned end) {
    const x_fiber &one = x_fibers[first];
    for (unsigned i = first + 1; i < end; ++i) {
        const x_fiber &other = x_fibers[i];
        if (other.done != one.done || other.line != one.line || other.shuffles_now != one.shuffles_now)
            x_fail("work items of a block wait at different barriers or shuffles, or some at none");
    }
}

// From shuffle to shuffle up to a barrier or the end, since other warps wait for no shuffle.
static void x_warp(unsigned first, unsigned end, bool reverse) {
    do {
        for (unsigned i = first; i < end; ++i) x_resume(reverse ? first + end - 1 - i : i);
        x_together(first, end);
    } while (x_fibers[first].shuffles_now);
}

// From barrier to barrier.
static void x_block(unsigned items, bool reverse) {
    if (x_fibers.size() < items) x_fibers.resize(items);
    x_items = items;
    for (unsigned i = 0; i < items; ++i) x_start(x_fibers[i]);
    const unsigned warps = (items + 31) / 32;
    do {
        for (unsigned k = 0; k < warps; ++k) {
            const unsigned first = 32 * (reverse ? warps - 1 - k : k);
            x_warp(first, first + 32 < items ? first + 32 : items, reverse);
        }
        x_together(0, items);
    } while (!x_fibers[0].done);
}

static void x_launch(const x_kernel &kernel, x_dim3 grid, x_dim3 block, const x_word *words, bool reverse) {
    x_call call = {kernel.invoke, words};
    const unsigned blocks = grid.x * grid.y * grid.z, items = block.x * block.y * block.z;
    if (items > X_MOST) x_fail("a block of more than 1024 work items");
    x_what = &call, gridDim = grid, blockDim = block;
    for (unsigned k = 0; k < blocks; ++k) {
        blockIdx = x_place(reverse ? blocks - 1 - k : k, grid);
        x_spoil();
        if (kernel.waits) {
            x_block(items, reverse);
            continue;
        }
        for (unsigned i = 0; i < items; ++i) {
            threadIdx = x_place(reverse ? items - 1 - i : i, block);
            kernel.invoke(words);
        }
    }
}

// --- jobs ----------------------------------------------------------------------------------------

static FILE *x_in, *x_out;

static void x_get(void *to, size_t size) {
    if (size && fread(to, 1, size, x_in) != size) x_fail("the file of jobs ends early");
}
static uint32_t x_number() {
    uint32_t value;
    x_get(&value, 4);
    return value;
}
static x_dim3 x_numbers() {
    x_dim3 value;
    x_get(&value, sizeof value);
    return value;
}

enum { X_GIVEN, X_RESULT, X_SCRATCH };
struct x_buffer { char *data, *copy; size_t size; uint32_t role; };

static x_buffer x_make() {
    x_buffer made = {nullptr, nullptr, x_number(), x_number()};
    if (posix_memalign((void **)&made.data, 256, made.size)) x_fail("no memory");
    memset(made.data, 0xa5, made.size);
    if (made.role == X_GIVEN) {
        x_get(made.data, made.size);
        made.copy = (char *)malloc(made.size);
        memcpy(made.copy, made.data, made.size);
    }
    return made;
}

static void x_step(const std::vector<x_buffer> &buffers, bool reverse) {
    const x_kernel &kernel = x_kernels[x_number()];
    const x_dim3 grid = x_numbers(), block = x_numbers();
    const uint32_t count = x_number();
    if (count != strlen(kernel.codes)) x_fail("a kernel is given another number of arguments");
    std::vector<x_word> words(count);
    for (uint32_t i = 0; i < count; ++i) {
        const uint32_t code = x_number();
        x_get(&words[i], 8);
        if (code != (uint32_t)kernel.codes[i]) x_fail("an argument of another type");
        if (code == 'p') words[i].pointer = buffers[words[i].bits].data;
    }
    x_launch(kernel, grid, block, words.data(), reverse);
}

static void x_job() {
    const bool reverse = x_number();
    std::vector<x_buffer> buffers(x_number());
    for (x_buffer &buffer : buffers) buffer = x_make();
    for (uint32_t steps = x_number(); steps; --steps) x_step(buffers, reverse);
    for (x_buffer &buffer : buffers) {
        if (buffer.role == X_GIVEN && memcmp(buffer.data, buffer.copy, buffer.size))
            x_fail("an operand has been written to");
        if (buffer.role == X_RESULT) fwrite(buffer.data, 1, buffer.size, x_out);
        free(buffer.data);
        free(buffer.copy);
    }
    fflush(x_out);
}

int main(int, char **files) {
    x_in = fopen(files[1], "rb");
    x_out = fopen(files[2], "wb");
    if (!x_in || !x_out) x_fail("a file cannot be opened");
    for (uint32_t jobs = x_number(); jobs; --jobs) x_job();
    return fclose(x_out);
}

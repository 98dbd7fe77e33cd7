/* What the runner and its peers capture in tests/benchmark.py, and the peer that does the runner's job in C.

   Each of these appends what it measured to FILE, three numbers on a line; times are CLOCK_MONOTONIC in ns:
     bulk FILE BYTES         prints lines of 80 bytes, 64 KiB a write                began, ended, bytes
     lines FILE COUNT        prints lines of 80 bytes, one a write                   began, ended, bytes
     losses FILE COUNT       prints what nanoGPT does, 64 KiB a write                began, ended, bytes
     words FILE COUNT        prints as much, without a loss in it                    began, ended, bytes
     started FILE            prints nothing                                          began
     delays FILE COUNT LOG   prints a line each 5 ms and looks until LOG has it      per line: how long it took
     steady FILE … --life=S  prints 16 KiB each 5 ms, for S seconds or until it      S, longest write,
                             gets INT or TERM; a pipe is soon full if nobody reads   when the signal came
   And `capture` is the peer: it copies stdin to stdout.log, and stamped line by line to combined.log. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { LINE = 80, WRITE = 819 * LINE, BLOCK = 128 << 10, LIMIT = 64 << 10, PERIOD = 5000000, SECOND = 1000000000 };

static char x[WRITE]; /* lines of x */
static volatile long long signalled;

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * (long long)SECOND + t.tv_nsec;
}

static void on_signal(int number) {
    if (number && !signalled) signalled = now();
}

static void sleep_until(long long when) {
    struct timespec t = {when / SECOND, when % SECOND};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static void put(int file, const char *data, size_t size) {
    while (size) {
        ssize_t done = write(file, data, size);
        if (done < 0 && errno != EINTR) exit(1);
        if (done > 0) data += done, size -= done;
    }
}

static int create(const char *name) {
    return open(name, O_WRONLY | O_CREAT | O_APPEND, 0666);
}

/* One line at the end of the file, in one write. */
static void tell(const char *name, long long a, long long b, long long c) {
    char text[80];
    int file = create(name);
    put(file, text, sprintf(text, "%lld %lld %lld\n", a, b, c));
    close(file);
}

static long long bulk(long long bytes) {
    for (long long rest = bytes; rest > 0; rest -= WRITE) put(1, x, rest < WRITE ? rest : WRITE);
    return bytes;
}

static long long lines(long long count) {
    for (long long i = 0; i < count; i++) put(1, x, LINE);
    return count * LINE;
}

/* As nanoGPT prints them, an evaluation each 1000 lines; or with other words of the same length. */
static size_t make_losses(char *text, long count, int real) {
    char *to = text;
    const char *step = real ? "step %ld: train loss %.4f, val loss %.4f\n"
                            : "text %ld: about word %.4f, abc word %.4f\n";
    const char *iter = real ? "iter %ld: loss %.4f, time 12.34ms, mfu 5.67%%\n"
                            : "text %ld: word %.4f, took 12.34ms, abc 5.67%%\n";
    for (long n = 0; n < count; n++) {
        double loss = 1 + 1e3 / (n + 1e3);
        to += n % 1000 ? sprintf(to, iter, n, loss) : sprintf(to, step, n, loss, loss);
    }
    return to - text;
}

static void losses(const char *file, long count, int real) {
    char *text = malloc(80 * count);
    size_t size = make_losses(text, count, real); /* before the clock starts */
    long long began = now();
    for (size_t done = 0; done < size; done += WRITE) put(1, text + done, size - done < WRITE ? size - done : WRITE);
    tell(file, began, now(), size);
}

static void delays(const char *file, long count, const char *log_name) {
    int log;
    long long *delay = calloc(count, sizeof *delay);
    while ((log = open(log_name, O_RDONLY)) < 0) usleep(100);
    long long due = now();
    for (long i = 0; i < count; i++) {
        struct stat there;
        sleep_until(due += PERIOD);
        long long before = now();
        put(1, x, LINE);
        do fstat(log, &there), delay[i] = now() - before;
        while (there.st_size < (i + 1) * LINE && delay[i] < SECOND);
    }
    for (long i = 0; i < count; i++) tell(file, delay[i], 0, 0);
}

static void steady(const char *file, int argc, char **argv) {
    long long life = 0, longest = 0, due = now();
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "--life=", 7)) life = atoll(argv[i] + 7);
    long long end = due + life * SECOND;
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    while (!signalled && now() < end) {
        long long before = now();
        put(1, x, 16 << 10);
        long long took = now() - before;
        if (took > longest) longest = took;
        sleep_until(due += PERIOD);
        if (due < before) due = now();
    }
    tell(file, life, longest, signalled);
}

static size_t stamp(char *mark) {
    struct timespec t;
    struct tm day;
    clock_gettime(CLOCK_REALTIME, &t);
    size_t size = strftime(mark, 32, "%F %T", localtime_r(&t.tv_sec, &day));
    return size + sprintf(mark + size, ".%03ld [STDOUT] ", t.tv_nsec / 1000000);
}

/* The runner's job: a block is read and written to stdout.log, and its lines, stamped, to combined.log at once. */
static void capture(void) {
    static char in[LIMIT + BLOCK], out[LIMIT + 40 * BLOCK], mark[64];
    int log = create("stdout.log"), combined = create("combined.log");
    size_t rest = 0; /* bytes of a line that isn't finished, at the beginning of `in` */
    ssize_t got;
    fcntl(0, F_SETPIPE_SZ, 2 * BLOCK);
    while ((got = read(0, in + rest, BLOCK)) > 0) {
        put(log, in + rest, got);
        char *line = in, *end = in + rest + got, *to = out, *newline;
        size_t size = stamp(mark);
        while ((newline = memchr(line, '\n', end - line))) {
            to = mempcpy(to, mark, size);
            to = mempcpy(to, line, newline + 1 - line);
            line = newline + 1;
        }
        rest = end - line;
        if (rest > LIMIT) { /* it is too long to be kept */
            to = mempcpy(to, mark, size);
            to = mempcpy(to, line, rest);
            *to++ = '\n';
            rest = 0;
        }
        put(combined, out, to - out);
        memmove(in, line, rest);
    }
    if (rest) {
        in[rest] = '\n';
        put(combined, mark, stamp(mark));
        put(combined, in, rest + 1);
    }
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "", *file = argc > 2 ? argv[2] : "";
    long long number = argc > 3 ? atoll(argv[3]) : 0, began = now(), size;
    memset(x, 'x', WRITE);
    for (size_t i = LINE - 1; i < WRITE; i += LINE) x[i] = '\n';
    if (!strcmp(what, "bulk")) size = bulk(number), tell(file, began, now(), size);
    else if (!strcmp(what, "lines")) size = lines(number), tell(file, began, now(), size);
    else if (!strcmp(what, "losses")) losses(file, number, 1);
    else if (!strcmp(what, "words")) losses(file, number, 0);
    else if (!strcmp(what, "started")) tell(file, began, 0, 0);
    else if (!strcmp(what, "delays") && argc > 4) delays(file, number, argv[4]);
    else if (!strcmp(what, "steady")) steady(file, argc, argv);
    else if (!strcmp(what, "capture")) capture();
    else return 2;
    return 0;
}

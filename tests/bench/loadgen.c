/* loadgen - a lean, single-threaded epoll load generator for upper-casing line servers.
 *
 *   loadgen MODE --addr 127.0.0.1:PORT|unix:/path [options]
 *
 *   pingpong  each connection sends a line, waits for its upper-cased form, repeats
 *   pipeline  the same with bursts of -d lines, sent at once and awaited together
 *   connect   each slot connects, sends a line, reads the reply, closes, repeats
 *   bulk      each connection streams both ways as fast as it can; the server echoes
 *   udp       each socket has -d datagrams on their way, and sends one for each answer
 *
 *   -c CONNECTIONS  -n LINE_BYTES  -d LINES_PER_BURST  -t SECONDS  -u WARM_UP_SECONDS
 *   --close eof|fin|rst  (connect) eof: half-close after the line and read until the
 *                        end; fin: close after the reply; rst: reset after the reply
 *   --pid PID            sample that process's CPU clock over the window
 *
 * Every reply is checked byte for byte. Prints one JSON object.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MAX_EVENTS 512
#define BULK_BLOCK (256 * 1024)
#define BULK_LINE 1024
#define UDP_HEAD 16                 /* bytes that say which datagram it is, in hex */
#define UDP_SLOTS 256               /* most datagrams of one socket on their way */
#define UDP_LOST 200000000u         /* ns after which one is lost */

static void die(const char *what) {
    fprintf(stderr, "loadgen: %s: %s\n", what, strerror(errno));
    exit(2);
}

/* ---- clocks: nanoseconds of time, seconds of CPU ---- */

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static double cpu_clock(clockid_t clock) {
    struct timespec t;
    return clock_gettime(clock, &t) == 0 ? t.tv_sec + t.tv_nsec / 1e9 : 0;
}

static double cpu_of_self(void) { return cpu_clock(CLOCK_PROCESS_CPUTIME_ID); }

static double cpu_of_process(pid_t pid) { /* all its threads */
    clockid_t clock;
    return pid && clock_getcpuclockid(pid, &clock) == 0 ? cpu_clock(clock) : 0;
}

/* ---- a log-linear histogram of latencies: 64 buckets to each power of two ---- */

#define BUCKETS 64
static uint64_t hist[64 * BUCKETS], hist_count, hist_max;

static void hist_add(uint64_t value) {
    int index = (int)value;
    if (value >= BUCKETS) {
        int exponent = 63 - __builtin_clzll(value);
        index = (exponent - 5) * BUCKETS + (int)((value >> (exponent - 6)) - BUCKETS);
    }
    hist[index]++;
    hist_count++;
    if (value > hist_max) hist_max = value;
}

static uint64_t hist_upper_bound(int index) {
    if (index < BUCKETS) return (uint64_t)index;
    int exponent = index / BUCKETS + 5;
    return (uint64_t)(index % BUCKETS + BUCKETS + 1) << (exponent - 6);
}

static double hist_microseconds(double quantile) {
    uint64_t wanted = (uint64_t)(quantile * (double)hist_count), seen = 0, value = hist_max;
    for (int i = 0; i < 64 * BUCKETS; i++) {
        seen += hist[i];
        if (seen > wanted) {
            value = hist_upper_bound(i);
            break;
        }
    }
    return (double)(value < hist_max ? value : hist_max) / 1e3;
}

/* ---- options ---- */

static enum { PINGPONG, PIPELINE, CONNECT, BULK, UDP } mode;
static const char *const mode_names[] = {"pingpong", "pipeline", "connect", "bulk", "udp"};
static enum { CLOSE_EOF, CLOSE_FIN, CLOSE_RST } close_how = CLOSE_EOF;
static int connections = 1, line_bytes = 32, depth = 1;
static double seconds = 2, warm_up = 0.3;
static pid_t server_pid;
static struct sockaddr_storage server_address;
static socklen_t server_address_len;

static void parse_address(const char *text) {
    if (strncmp(text, "unix:", 5) == 0) {
        struct sockaddr_un *un = (struct sockaddr_un *)&server_address;
        un->sun_family = AF_UNIX;
        strncpy(un->sun_path, text + 5, sizeof un->sun_path - 1);
        server_address_len = sizeof *un;
        return;
    }
    char host[64];
    const char *colon = strrchr(text, ':');
    struct sockaddr_in *in = (struct sockaddr_in *)&server_address;
    errno = EINVAL;
    if (!colon) die("--addr");
    snprintf(host, sizeof host, "%.*s", (int)(colon - text), text);
    in->sin_family = AF_INET;
    in->sin_port = htons((uint16_t)atoi(colon + 1));
    if (inet_pton(AF_INET, host, &in->sin_addr) != 1) die("--addr");
    if (ntohl(in->sin_addr.s_addr) >> 24 != 127) die("--addr: this is for the loopback only");
    server_address_len = sizeof *in;
}

static int index_of(const char *name, const char *const names[], int count) {
    for (int i = 0; i < count; i++)
        if (strcmp(name, names[i]) == 0) return i;
    fprintf(stderr, "loadgen: unknown: %s (see the head of loadgen.c)\n", name);
    exit(2);
}

static void parse_options(int argc, char **argv) {
    static const char *const close_names[] = {"eof", "fin", "rst"};
    static const char *const options[] = {"--addr", "-c", "-n", "-d", "-t", "-u", "--close", "--pid"};
    if (argc < 2 || argc % 2) {
        fprintf(stderr, "usage: loadgen MODE --addr ADDRESS [options]\n");
        exit(2);
    }
    mode = index_of(argv[1], mode_names, 5);
    for (int i = 2; i < argc; i += 2) {
        const char *value = argv[i + 1];
        switch (index_of(argv[i], options, 8)) {
            case 0: parse_address(value); break;
            case 1: connections = atoi(value); break;
            case 2: line_bytes = atoi(value); break;
            case 3: depth = atoi(value); break;
            case 4: seconds = atof(value); break;
            case 5: warm_up = atof(value); break;
            case 6: close_how = index_of(value, close_names, 3); break;
            case 7: server_pid = atoi(value); break;
        }
    }
    errno = EINVAL;
    if (!server_address_len) die("--addr is needed");
    if (connections < 1 || line_bytes < 1 || depth < 1) die("-c, -n and -d count from 1");
    if (mode == UDP && (line_bytes < UDP_HEAD || depth > UDP_SLOTS)) die("-n or -d of udp");
    if (mode != PIPELINE && mode != UDP) depth = 1;
}

/* ---- what is sent, and what must come back ---- */

static char *sent, *expected;
static size_t block; /* bytes of both */

static void make_blocks(void) {
    size_t line = mode == BULK ? BULK_LINE : (size_t)line_bytes;
    block = mode == BULK ? BULK_BLOCK : mode == UDP ? line : line * (size_t)depth;
    sent = malloc(block);
    expected = malloc(block);
    if (!sent || !expected) die("malloc");
    for (size_t i = 0; i < block; i++) {
        bool newline = i % line == line - 1;
        sent[i] = newline ? '\n' : (char)('a' + i % 26);
        expected[i] = newline ? '\n' : (char)((mode == BULK ? 'a' : 'A') + i % 26);
    }
}

/* ---- counters of the window ---- */

static uint64_t ops, bytes_in, errors, eofs, bad, connect_errors;
static uint64_t window_start;
static double server_cpu_start, client_cpu_start;

static void begin_window(void) {
    memset(hist, 0, sizeof hist);
    hist_count = hist_max = 0;
    ops = bytes_in = errors = eofs = bad = connect_errors = 0;
    server_cpu_start = cpu_of_process(server_pid);
    client_cpu_start = cpu_of_self();
    window_start = now();
}

static void report(void) {
    double elapsed = (double)(now() - window_start) / 1e9;
    double server_cpu = cpu_of_process(server_pid) - server_cpu_start;
    double client_cpu = cpu_of_self() - client_cpu_start;
    printf("{\"mode\":\"%s\",\"secs\":%.4f,\"ops\":%llu,\"ops_s\":%.1f,\"MB_s\":%.2f,",
           mode_names[mode], elapsed, (unsigned long long)ops, (double)ops / elapsed,
           (double)bytes_in / elapsed / 1e6);
    printf("\"p50_us\":%.1f,\"p99_us\":%.1f,\"p999_us\":%.1f,\"max_us\":%.1f,",
           hist_microseconds(.5), hist_microseconds(.99), hist_microseconds(.999),
           (double)hist_max / 1e3);
    printf("\"errors\":%llu,\"eofs\":%llu,\"bad\":%llu,\"connect_errors\":%llu,",
           (unsigned long long)errors, (unsigned long long)eofs, (unsigned long long)bad,
           (unsigned long long)connect_errors);
    printf("\"client_cpu\":%.3f,\"server_cpu\":%.3f,\"server_us_per_op\":%.3f}\n",
           client_cpu / elapsed, server_cpu / elapsed, ops ? server_cpu * 1e6 / (double)ops : 0);
}

/* ---- connections ---- */

struct conn {
    int fd;
    bool connected;            /* connect mode: the line was sent */
    size_t written, read;      /* bytes of the block */
    uint64_t started;          /* when the block, or the dialling, began */
    uint32_t events;           /* what epoll watches for */
    uint64_t *sent_at;         /* udp: of the datagrams on their way, by slot; and which */
    uint32_t *number;
};

static int epoll_fd;
static char buffer[1 << 20];

/* Source addresses rotate over 127.0.x.y, so that ports do not run out. */
static bool bind_next_source(int fd) {
    static unsigned count;
    struct sockaddr_in source = {.sin_family = AF_INET};
    unsigned k = count++;
    int on = 1;
    source.sin_addr.s_addr = htonl(0x7f000000u | (1 + k / 250 % 100) << 8 | (1 + k % 250));
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return bind(fd, (struct sockaddr *)&source, sizeof source) == 0;
}

static int dial(void) { /* a socket that connects, or -1 */
    int family = server_address.ss_family;
    int type = mode == UDP ? SOCK_DGRAM : SOCK_STREAM;
    int fd = socket(family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    bool ok = family != AF_INET || mode == UDP || bind_next_source(fd);
    ok = ok && (connect(fd, (struct sockaddr *)&server_address, server_address_len) == 0 ||
                errno == EINPROGRESS);
    if (ok) return fd;
    close(fd);
    return -1;
}

static void watch(int operation, struct conn *conn, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = conn};
    if (operation == EPOLL_CTL_MOD && conn->events == events) return;
    conn->events = events;
    if (epoll_ctl(epoll_fd, operation, conn->fd, &event) < 0) die("epoll_ctl");
}

static void hang_up(struct conn *conn) {
    close(conn->fd);
    conn->fd = -1;
}

/* The bytes received; 0 when there is nothing to do now. Ends are counted and closed. */
static size_t receive(struct conn *conn, size_t most) {
    ssize_t n = recv(conn->fd, buffer, most < sizeof buffer ? most : sizeof buffer, 0);
    if (n > 0) {
        bytes_in += (uint64_t)n;
        return (size_t)n;
    }
    if (n < 0 && errno == EAGAIN) return 0;
    if (n == 0)
        eofs++;
    else
        errors++;
    hang_up(conn);
    return 0;
}

/* ---- pingpong, pipeline ---- */

static void send_rest_of_burst(struct conn *conn) {
    while (conn->written < block) {
        ssize_t n = send(conn->fd, sent + conn->written, block - conn->written, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            watch(EPOLL_CTL_MOD, conn, EPOLLIN | EPOLLOUT);
            return;
        }
        if (n < 0) {
            errors++;
            hang_up(conn);
            return;
        }
        conn->written += (size_t)n;
    }
    watch(EPOLL_CTL_MOD, conn, EPOLLIN);
}

static void on_burst(struct conn *conn, uint32_t events) {
    if (events & EPOLLOUT) send_rest_of_burst(conn);
    if (conn->fd < 0 || !(events & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
    size_t n = receive(conn, block - conn->read);
    if (memcmp(buffer, expected + conn->read, n) != 0) bad++;
    conn->read += n;
    if (conn->read < block) return;
    uint64_t t = now();
    hist_add(t - conn->started);
    ops += (uint64_t)depth;
    conn->written = conn->read = 0;
    conn->started = t;
    send_rest_of_burst(conn);
}

/* ---- bulk: an endless repetition of the block, each way on its own ---- */

static void on_bulk(struct conn *conn, uint32_t events) {
    if (events & EPOLLOUT) {
        ssize_t n = send(conn->fd, sent + conn->written, block - conn->written, MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN) {
            errors++;
            hang_up(conn);
            return;
        }
        if (n > 0) conn->written = (conn->written + (size_t)n) % block;
    }
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
    size_t n = receive(conn, sizeof buffer);
    for (size_t done = 0; done < n;) {
        size_t part = block - conn->read < n - done ? block - conn->read : n - done;
        if (memcmp(buffer + done, expected + conn->read, part) != 0) bad++;
        done += part;
        conn->read = (conn->read + part) % block;
        if (conn->read == 0) ops++;
    }
}

/* ---- connect ---- */

static void start_slot(struct conn *conn) {
    conn->connected = false;
    conn->read = 0;
    for (int tries = 0; tries < 3; tries++) {
        conn->started = now();
        conn->fd = dial();
        if (conn->fd >= 0) {
            watch(EPOLL_CTL_ADD, conn, EPOLLOUT);
            return;
        }
        connect_errors++;
    }
}

static void end_slot(struct conn *conn) {
    if (close_how == CLOSE_RST) {
        struct linger reset = {1, 0};
        setsockopt(conn->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    }
    close(conn->fd);
}

static void fail_slot(struct conn *conn, uint64_t *counter) {
    (*counter)++;
    end_slot(conn);
    start_slot(conn);
}

static void complete_slot(struct conn *conn) {
    end_slot(conn);
    hist_add(now() - conn->started);
    ops++;
    start_slot(conn);
}

static void on_connected(struct conn *conn) {
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(conn->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error) {
        fail_slot(conn, &connect_errors);
        return;
    }
    if (send(conn->fd, sent, block, MSG_NOSIGNAL) != (ssize_t)block) {
        fail_slot(conn, &errors);
        return;
    }
    if (close_how == CLOSE_EOF) shutdown(conn->fd, SHUT_WR);
    conn->connected = true;
    watch(EPOLL_CTL_MOD, conn, EPOLLIN);
}

static void on_slot(struct conn *conn, uint32_t events) {
    (void)events;
    if (!conn->connected) {
        on_connected(conn);
        return;
    }
    ssize_t n = recv(conn->fd, buffer, sizeof buffer, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n < 0) {
        fail_slot(conn, &errors);
    } else if (n == 0 && conn->read == block) {
        complete_slot(conn);
    } else if (n == 0) {
        fail_slot(conn, &eofs);
    } else if (conn->read + (size_t)n > block || memcmp(buffer, expected + conn->read, (size_t)n)) {
        fail_slot(conn, &bad);
    } else {
        bytes_in += (uint64_t)n;
        conn->read += (size_t)n;
        if (conn->read == block && close_how != CLOSE_EOF) complete_slot(conn);
    }
}

/* ---- udp: one that is lost is counted as an error, and another one is sent ---- */

static void send_datagram(struct conn *conn, unsigned slot) {
    char head[UDP_HEAD + 1];
    uint32_t number = ++conn->number[slot];
    snprintf(head, sizeof head, "%08x%08x", slot, number);
    memcpy(sent, head, UDP_HEAD);
    conn->sent_at[slot] = now();
    if (send(conn->fd, sent, block, MSG_NOSIGNAL) < 0 && errno != EAGAIN) errors++;
}

static void on_datagrams(struct conn *conn, uint32_t events) {
    (void)events;
    ssize_t n;
    while ((n = recv(conn->fd, buffer, sizeof buffer - 1, 0)) >= 0) {
        unsigned slot, number;
        buffer[n] = 0;
        bool fits = (size_t)n == block && sscanf(buffer, "%8x%8x", &slot, &number) == 2;
        size_t rest = block - UDP_HEAD;
        if (!fits || slot >= (unsigned)depth ||
            memcmp(buffer + UDP_HEAD, expected + UDP_HEAD, rest) != 0) {
            bad++;
            continue;
        }
        if (number != conn->number[slot]) continue; /* it was thought lost */
        hist_add(now() - conn->sent_at[slot]);
        ops++;
        bytes_in += (uint64_t)n;
        send_datagram(conn, slot);
    }
    if (errno != EAGAIN) errors++;
}

static void send_lost_again(struct conn *conn, uint64_t t) {
    for (unsigned slot = 0; slot < (unsigned)depth; slot++) {
        if (t - conn->sent_at[slot] > UDP_LOST) {
            errors++;
            send_datagram(conn, slot);
        }
    }
}

/* ---- the run ---- */

static void open_connections(struct conn *conns) {
    for (int i = 0; i < connections; i++) {
        struct conn *conn = &conns[i];
        if (mode == CONNECT) {
            start_slot(conn);
            continue;
        }
        conn->fd = dial();
        if (conn->fd < 0) die("connect");
        conn->started = now();
        if (mode == UDP) {
            conn->sent_at = calloc(UDP_SLOTS, sizeof *conn->sent_at);
            conn->number = calloc(UDP_SLOTS, sizeof *conn->number);
            if (!conn->sent_at || !conn->number) die("calloc");
            watch(EPOLL_CTL_ADD, conn, EPOLLIN);
            for (unsigned slot = 0; slot < (unsigned)depth; slot++) send_datagram(conn, slot);
            continue;
        }
        watch(EPOLL_CTL_ADD, conn, EPOLLIN | EPOLLOUT); /* the first EPOLLOUT: connected */
    }
}

static void give_up(int signal) { /* the loop below is stuck */
    (void)signal;
    _exit(3);
}

int main(int argc, char **argv) {
    parse_options(argc, argv);
    make_blocks();
    signal(SIGPIPE, SIG_IGN);
    signal(SIGALRM, give_up);
    alarm((unsigned)(seconds + warm_up + 10));

    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct conn *conns = calloc((size_t)connections, sizeof *conns);
    if (epoll_fd < 0 || !conns) die("setting up");
    void (*on_event)(struct conn *, uint32_t) =
        mode == CONNECT ? on_slot : mode == BULK ? on_bulk : mode == UDP ? on_datagrams : on_burst;
    uint64_t next_look = now();

    uint64_t window = now() + (uint64_t)(warm_up * 1e9), end = window + (uint64_t)(seconds * 1e9);
    open_connections(conns);
    for (;;) {
        struct epoll_event events[MAX_EVENTS];
        int count = epoll_wait(epoll_fd, events, MAX_EVENTS, 20);
        uint64_t t = now();
        if (!window_start && t >= window) begin_window();
        if (t >= end) break;
        if (mode == UDP && t >= next_look) {
            next_look = t + UDP_LOST / 4;
            for (int i = 0; i < connections; i++) send_lost_again(&conns[i], t);
        }
        for (int i = 0; i < count; i++) {
            struct conn *conn = events[i].data.ptr;
            if (conn->fd >= 0) on_event(conn, events[i].events);
        }
    }
    report();
    return 0;
}

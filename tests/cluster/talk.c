/*
 * Two ends of connections that check every byte, for pods: poll(2), then recv, as event loops do.
 *
 *   talk server PORT                          echoes what it gets, after checking it; without end
 *   talk client ADDRESS PORT CONNECTIONS      sends and checks until SIGTERM, then half-closes, reads to the end and
 *                                             prints "done N messages N bytes"; "wrong ..." and exit 1 otherwise
 *
 * Byte i of each direction of a connection is a function of i, so loss, reordering and repetition all show.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX 256
#define MESSAGE 4096

static volatile sig_atomic_t ending;

static void on_term(int signal)
{
	ending = 1;
}

static uint8_t byte_at(uint64_t i)
{
	return (i * 2654435761u + (i >> 8) * 40503u) >> 7;
}

static void wrong(const char *what, long detail)
{
	printf("wrong %s %ld\n", what, detail);
	exit(1);
}

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000ll + t.tv_nsec / 1000000;
}

/* What has come and been checked; waits in poll first. 0 at the end of the stream. */
static ssize_t take(int fd, uint64_t *at, uint8_t *into, size_t room)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	for (;;) {
		ssize_t n;

		if (poll(&p, 1, 30000) == 0)
			wrong("silence at byte", *at);
		n = recv(fd, into, room, MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (n < 0)
			wrong(strerror(errno), *at);
		for (ssize_t i = 0; i < n; i++)
			if (into[i] != byte_at(*at + i))
				wrong("byte", *at + i);
		*at += n;
		return n;
	}
}

static void put(int fd, uint64_t *at, size_t count)
{
	uint8_t out[MESSAGE];
	size_t sent = 0;

	for (size_t i = 0; i < count; i++)
		out[i] = byte_at(*at + i);
	while (sent < count) {
		struct pollfd p = { .fd = fd, .events = POLLOUT };
		ssize_t n = send(fd, out + sent, count - sent, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
			if (poll(&p, 1, 30000) == 0)
				wrong("stuck at byte", *at);
			continue;
		}
		if (n < 0)
			wrong(strerror(errno), *at);
		sent += n;
	}
	*at += count;
}

static void serve(int port)
{
	struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	static uint64_t in[MAX], out[MAX];
	struct pollfd fds[MAX];
	int n = 1, one = 1, listener = socket(AF_INET6, SOCK_STREAM, 0);
	uint8_t buffer[MESSAGE];

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (void *)&any, sizeof(any)) || listen(listener, MAX))
		wrong(strerror(errno), port);
	printf("ready\n");
	fds[0] = (struct pollfd){ .fd = listener, .events = POLLIN };
	for (;;) {
		if (poll(fds, n, -1) < 0)
			continue;
		if (fds[0].revents && n < MAX) {
			fds[n] = (struct pollfd){ .fd = accept(listener, 0, 0), .events = POLLIN };
			setsockopt(fds[n].fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
			in[n] = out[n] = 0;
			n++;
			continue;
		}
		for (int i = 1; i < n; i++) {
			ssize_t got;

			if (!fds[i].revents)
				continue;
			got = recv(fds[i].fd, buffer, sizeof(buffer), MSG_DONTWAIT);
			if (got < 0 && (errno == EAGAIN || errno == EINTR))
				continue;
			for (ssize_t k = 0; k < got; k++)
				if (buffer[k] != byte_at(in[i] + k)) {
					/* The client sees a reset and says so. */
					printf("wrong byte %llu\n", (unsigned long long)(in[i] + k));
					got = -1;
				}
			if (got > 0) {
				in[i] += got;
				put(fds[i].fd, &out[i], got);
				continue;
			}
			close(fds[i].fd);
			n--;
			fds[i] = fds[n];
			in[i] = in[n];
			out[i] = out[n];
			i--;
		}
	}
}

static void talk(const char *address, int port, int connections)
{
	static uint64_t in[MAX], out[MAX];
	uint64_t messages = 0, bytes = 0, round = 0;
	int fd[MAX], one = 1;
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port) };
	uint8_t buffer[MESSAGE];
	int64_t reported = now_ms();

	inet_pton(AF_INET, address, &to.sin_addr);
	for (int i = 0; i < connections; i++) {
		fd[i] = socket(AF_INET, SOCK_STREAM, 0);
		setsockopt(fd[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		if (connect(fd[i], (void *)&to, sizeof(to)))
			wrong(strerror(errno), i);
	}
	while (!ending) {
		for (int i = 0; i < connections; i++) {
			size_t size = 1 + (round * 37 + i * 101) % MESSAGE;

			put(fd[i], &out[i], size);
			while (in[i] < out[i])
				if (take(fd[i], &in[i], buffer, sizeof(buffer)) == 0)
					wrong("end at byte", in[i]);
			messages++;
			bytes += size;
		}
		round++;
		if (now_ms() - reported >= 250) {
			reported = now_ms();
			printf("ok %llu\n", (unsigned long long)messages);
		}
		/* Leaves the CPU to others. */
		usleep(2000);
	}
	for (int i = 0; i < connections; i++) {
		shutdown(fd[i], SHUT_WR);
		while (take(fd[i], &in[i], buffer, sizeof(buffer)) > 0)
			;
		if (in[i] != out[i])
			wrong("length", in[i]);
	}
	printf("done %llu messages %llu bytes\n", (unsigned long long)messages, (unsigned long long)bytes);
}

int main(int argc, char **argv)
{
	setvbuf(stdout, 0, _IOLBF, 0);
	signal(SIGTERM, on_term);
	signal(SIGPIPE, SIG_IGN);
	if (argc == 3 && !strcmp(argv[1], "server"))
		serve(atoi(argv[2]));
	else if (argc == 5 && !strcmp(argv[1], "client") && atoi(argv[4]) < MAX)
		talk(argv[2], atoi(argv[3]), atoi(argv[4]));
	else
		return 2;
	return 0;
}

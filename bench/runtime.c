/*
 * Executes CNI plugins as a runtime does, and takes the time of each call: from
 * before its pipes are made until it has ended and all that it printed is read.
 *
 *     runtime WORKERS ROUNDS COMMANDS CONFIG POD... -- PROGRAM [ARGUMENT...]
 *
 * A round takes the pod (the path of a namespace) that has been free the longest,
 * and executes PROGRAM for it with each of COMMANDS, such as ADD,DEL, one after
 * the other, CONFIG (a file) as its input and the round's number in its container
 * id. WORKERS threads take rounds until ROUNDS are done; there are as many pods
 * at least. A call costs here what it costs a runtime: posix_spawn, which copies
 * no memory, two pipes, wait4.
 *
 * Prints a line for each call: command, begin and end in nanoseconds of the
 * monotonic clock, processor time of the program and its children in
 * microseconds. Ends with 1 at the first call that fails, whose words it prints.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST_COMMANDS = 8, LONGEST_CONFIG = 1 << 16, LONGEST_ANSWER = 1 << 16, LONGEST_NAME = 512 };

struct call {
    const char *command;
    int64_t begin_ns, end_ns, cpu_us;
};

extern char **environ;

static char config[LONGEST_CONFIG];
static size_t config_length;
static char *commands[MOST_COMMANDS];
static int command_count, rounds, next_round;
static char **program;
static char **pods; /* a ring: the free ones are from `oldest` on */
static int pod_count, oldest, newest;
static struct call *calls; /* of each round, in the order of its commands */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static posix_spawnattr_t as_usual; /* SIGPIPE, which we ignore, ends a program again */

static _Noreturn void give_up(const char *what, int error)
{
    fprintf(stderr, "runtime: %s: %s\n", what, strerror(error));
    exit(1);
}

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int64_t microseconds(struct timeval used)
{
    return (int64_t)used.tv_sec * 1000000 + used.tv_usec;
}

static void make_pipe(int ends[2])
{
    if (pipe2(ends, O_CLOEXEC) < 0)
        give_up("pipe", errno);
}

/* Start the program with these ends of its pipes. */
static pid_t start(char **environment, int input, int output)
{
    posix_spawn_file_actions_t actions;
    pid_t child;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, input, STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
    int error = posix_spawn(&child, program[0], &actions, &as_usual, program, environment);
    if (error != 0)
        give_up(program[0], error);
    posix_spawn_file_actions_destroy(&actions);
    return child;
}

/* Execute the program once; return when it began and ended, and what it used. */
static struct call execute(const char *command, char **environment)
{
    char answer[LONGEST_ANSWER];
    size_t length = 0;
    ssize_t part;
    int input[2], output[2], status;
    struct rusage used;
    struct call call = {.command = command, .begin_ns = now_ns()};
    make_pipe(input);
    make_pipe(output);
    pid_t child = start(environment, input[0], output[1]);
    close(input[0]);
    close(output[1]);
    /* /bin/true does not read; a pipe holds all of it, so nobody waits. */
    if (write(input[1], config, config_length) < 0 && errno != EPIPE)
        give_up("write", errno);
    close(input[1]);
    while ((part = read(output[0], answer + length, sizeof answer - length)) > 0)
        length += (size_t)part;
    close(output[0]);
    if (wait4(child, &status, 0, &used) < 0)
        give_up("wait4", errno);
    call.end_ns = now_ns();
    call.cpu_us = microseconds(used.ru_utime) + microseconds(used.ru_stime);
    if (status != 0) {
        fprintf(stderr, "%s: status %d: %.*s\n", command, status, (int)length, answer);
        exit(1);
    }
    return call;
}

/* Do all that one round asks, for one pod. */
static void attach(int round, const char *pod)
{
    char command[LONGEST_NAME], container[LONGEST_NAME], netns[LONGEST_NAME];
    int inherited = 0;
    while (environ[inherited] != NULL)
        inherited++;
    char *environment[inherited + 4];
    memcpy(environment, environ, (size_t)inherited * sizeof *environ);
    environment[inherited] = command;
    environment[inherited + 1] = container;
    environment[inherited + 2] = netns;
    environment[inherited + 3] = NULL;
    snprintf(container, sizeof container, "CNI_CONTAINERID=bench%059d", round);
    snprintf(netns, sizeof netns, "CNI_NETNS=%s", pod);
    for (int i = 0; i < command_count; i++) {
        snprintf(command, sizeof command, "CNI_COMMAND=%s", commands[i]);
        calls[round * command_count + i] = execute(commands[i], environment);
    }
}

static void *work(void *nothing)
{
    (void)nothing;
    for (;;) {
        pthread_mutex_lock(&lock);
        int round = next_round < rounds ? next_round++ : -1;
        char *pod = round >= 0 ? pods[oldest++ % pod_count] : NULL;
        pthread_mutex_unlock(&lock);
        if (pod == NULL)
            return NULL;
        attach(round, pod);
        pthread_mutex_lock(&lock);
        pods[newest++ % pod_count] = pod;
        pthread_mutex_unlock(&lock);
    }
}

static void ignore_broken_pipes(void)
{
    sigset_t broken_pipe;
    sigemptyset(&broken_pipe);
    sigaddset(&broken_pipe, SIGPIPE);
    signal(SIGPIPE, SIG_IGN);
    posix_spawnattr_init(&as_usual);
    posix_spawnattr_setsigdefault(&as_usual, &broken_pipe);
    posix_spawnattr_setflags(&as_usual, POSIX_SPAWN_SETSIGDEF);
}

static void read_config(const char *path)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = file < 0 ? -1 : read(file, config, sizeof config);
    if (length < 0)
        give_up(path, errno);
    config_length = (size_t)length;
    close(file);
}

int main(int count, char **words)
{
    int at = 5;
    while (at < count && strcmp(words[at], "--") != 0)
        at++;
    if (at + 1 >= count)
        give_up("WORKERS ROUNDS COMMANDS CONFIG POD... -- PROGRAM [ARGUMENT...]", EINVAL);
    int workers = atoi(words[1]);
    rounds = atoi(words[2]);
    for (char *name = strtok(words[3], ","); name != NULL && command_count < MOST_COMMANDS;
         name = strtok(NULL, ","))
        commands[command_count++] = name;
    pods = words + 5;
    pod_count = at - 5;
    program = words + at + 1;
    read_config(words[4]);
    calls = calloc((size_t)rounds * (size_t)command_count, sizeof *calls);
    if (workers < 1 || pod_count < workers || calls == NULL)
        give_up("workers and pods", EINVAL);
    ignore_broken_pipes();
    pthread_t threads[workers];
    for (int i = 0; i < workers; i++)
        if (pthread_create(&threads[i], NULL, work, NULL) != 0)
            give_up("thread", errno);
    for (int i = 0; i < workers; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < rounds * command_count; i++)
        printf("%s %lld %lld %lld\n", calls[i].command, (long long)calls[i].begin_ns,
               (long long)calls[i].end_ns, (long long)calls[i].cpu_us);
    return 0;
}

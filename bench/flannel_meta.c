/*
 * A stand-in for flannel's CNI plugin where flannel_meta.go cannot be built: as
 * that one does, it reads subnet.env, writes the delegate's configuration into
 * a file of the container, and executes the plugin `bridge`, which executes
 * `host-local`. A program in Go takes some milliseconds more to start, so this is
 * less than flannel's chain takes.
 *
 *     flannel_meta SUBNET_ENV DATA_DIR BRIDGE < config
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static void give_up(const char *what)
{
    perror(what);
    exit(1);
}

/* Return the value of a line NAME=VALUE of the subnet file. */
static char *value_of(char *text, const char *name)
{
    char *line = strstr(text, name);
    if (line == NULL)
        give_up(name);
    return strndup(line + strlen(name), strcspn(line + strlen(name), "\n"));
}

static void write_config(const char *subnet_file, const char *folder, const char *path)
{
    static char text[4096];
    FILE *file = fopen(subnet_file, "r");
    if (file == NULL)
        give_up(subnet_file);
    text[fread(text, 1, sizeof text - 1, file)] = '\0';
    fclose(file);
    /* host-local takes the network's own address, not the gateway's. */
    char *subnet = value_of(text, "FLANNEL_SUBNET="), *dot = strrchr(subnet, '.');
    char *slash = strchr(subnet, '/');
    if (dot == NULL || slash == NULL || (file = fopen(path, "w")) == NULL)
        give_up(path);
    fprintf(file,
            "{\"cniVersion\":\"1.0.0\",\"name\":\"bench\",\"type\":\"bridge\",\"bridge\":\"cni-flannel\","
            "\"isGateway\":true,\"isDefaultGateway\":true,\"hairpinMode\":true,\"ipMasq\":false,"
            "\"mtu\":%s,\"ipam\":{\"type\":\"host-local\",\"dataDir\":\"%s\","
            "\"ranges\":[[{\"subnet\":\"%.*s.0%s\"}]],\"routes\":[{\"dst\":\"%s\"}]}}",
            value_of(text, "FLANNEL_MTU="), folder, (int)(dot - subnet), subnet, slash,
            value_of(text, "FLANNEL_NETWORK="));
    fclose(file);
}

int main(int count, char **words)
{
    char path[4096], input[65536];
    const char *command = getenv("CNI_COMMAND"), *container = getenv("CNI_CONTAINERID");
    if (count != 4 || command == NULL || container == NULL)
        return 2;
    while (read(STDIN_FILENO, input, sizeof input) > 0)
        continue;
    mkdir(words[2], 0700);
    snprintf(path, sizeof path, "%s/%s", words[2], container);
    if (strcmp(command, "ADD") == 0)
        write_config(words[1], words[2], path);
    pid_t child = fork();
    if (child == 0) {
        int config = open(path, O_RDONLY);
        if (config < 0 || dup2(config, STDIN_FILENO) < 0)
            give_up(path);
        execl(words[3], words[3], (char *)NULL);
        give_up(words[3]);
    }
    int status;
    if (child < 0 || waitpid(child, &status, 0) < 0)
        give_up(words[3]);
    if (strcmp(command, "DEL") == 0 && status == 0)
        unlink(path);
    return status == 0 ? 0 : 1;
}

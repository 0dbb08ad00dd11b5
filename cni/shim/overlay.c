/*
 * The CNI plugin `overlay`: hands what a runtime asks to the node's agent, and
 * back its answer.
 *
 * It passes the CNI variables, standard input and open descriptors of the pod's
 * network namespace over a unix socket, and prints what comes back. It
 * answers VERSION, and what is wrong with a request, by itself. It must not
 * allocate, wire or remember anything. docs/cni-protocol.md has the bytes,
 * limits and times; overlay_cni/plugin.py is the same in Python, message by
 * message.
 *
 * All memory is static and bounded. Pages that are not touched cost nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

/* linux/magic.h, linux/nsfs.h and linux/netlink.h, which musl does not bring along. */
#define NSFS_MAGIC_NUMBER 0x6e736673UL
#define NS_GET_NSTYPE_REQUEST 0xb703
#define ROUTE_PROTOCOL 0 /* NETLINK_ROUTE */

#define DEFAULT_SOCKET "/run/overlay/cni.sock"

enum {
    LONGEST_VALUE = 4096,    /* bytes of one variable */
    LONGEST_INPUT = 1 << 20, /* bytes */
    LONGEST_ANSWER = 1 << 20,
    LONGEST_VERSION = 64, /* bytes of "cniVersion" */
    LONGEST_NAME = 255,   /* bytes of "name" and "type" */
    LONGEST_PATH = 107,   /* bytes of "socket": sun_path */
    LONGEST_IFNAME = 15,
    DEEPEST = 128, /* objects and arrays within one another */
    HEADER = 16,
    ANSWER_HEADER = 12,
};

/* Milliseconds: over before a runtime that allows 60 s gives up. */
enum {
    ALL_MS = 55000,
    STATUS_ALL_MS = 2000,
    CONNECT_MS = 5000,
    STATUS_CONNECT_MS = 1000,
    INPUT_MS = 10000,
    GLANCE_MS = 100, /* for input that would be nice to have */
    RETRY_MS = 10,
};

/* CNI's error codes. */
enum {
    UNSUPPORTED = 1,
    BAD_VARIABLE = 4,
    IO_FAILURE = 5,
    UNDECODABLE = 6,
    BAD_CONFIG = 7,
    TRY_LATER = 11,
    UNAVAILABLE = 50,
};

/* Descriptors that the first byte carries, in this order; flags: a bit for each. */
enum { OF_NETNS, OF_RTNL, OF_SYSCTLS, DESCRIPTORS };
struct descriptors {
    int count;
    int of[DESCRIPTORS];
};

static const char MAGIC[] = "OVL1";

static const char *const VERSIONS[] = {"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"};
enum { VERSION_COUNT = sizeof VERSIONS / sizeof VERSIONS[0] };

static const char NAMING[] =
    "it begins with a letter or digit and goes on with those, \"_\", \".\" and \"-\"";
static const char JSON[] =
    "standard input must be one JSON object in UTF-8, at most 128 levels deep";
static const char AGENT[] = "see whether overlayd runs on this node; the runtime may ask again";

enum variable { COMMAND, CONTAINERID, NETNS, IFNAME, ARGS, PATH, NETNS_OVERRIDE, VARIABLES };
static const char *const NAMES[VARIABLES] = {
    "CNI_COMMAND", "CNI_CONTAINERID",    "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS",
    "CNI_PATH",    "CNI_NETNS_OVERRIDE",
};

/* What each command needs, and the index of the version since when it is there. */
struct command {
    const char *name;
    const char *needs_text;
    unsigned needs; /* a bit for each variable */
    unsigned since;
};
static const struct command COMMANDS[] = {
    {"ADD", "ADD needs CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME",
     1u << CONTAINERID | 1u << NETNS | 1u << IFNAME, 0},
    {"DEL", "DEL needs CNI_CONTAINERID, CNI_IFNAME", 1u << CONTAINERID | 1u << IFNAME, 0},
    {"CHECK", "CHECK needs CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME",
     1u << CONTAINERID | 1u << NETNS | 1u << IFNAME, 2},
    {"GC", "GC needs CNI_PATH", 1u << PATH, 4},
    {"STATUS", "", 0, 4},
};

/* A string of the configuration; `text` has one byte more for the end. */
struct field {
    const char *key;
    enum { ABSENT, STRING, UNUSABLE } state;
    size_t longest;
    size_t length;
    char text[LONGEST_NAME + 1];
};
static struct field cni_version = {.key = "cniVersion", .longest = LONGEST_VERSION};
static struct field name = {.key = "name", .longest = LONGEST_NAME};
static struct field type = {.key = "type", .longest = LONGEST_NAME};
static struct field socket_path = {.key = "socket", .longest = LONGEST_PATH};
static struct field *const FIELDS[] = {&cni_version, &name, &type, &socket_path};
enum { FIELD_COUNT = sizeof FIELDS / sizeof FIELDS[0], LONGEST_KEY = 10 };

static const char *values[VARIABLES]; /* empty where absent */
static const struct command *command; /* NULL for VERSION and for what is unknown */
static char input[LONGEST_INPUT + 1];
static size_t input_length;
static enum { INPUT_FINE, INPUT_TOO_LONG, INPUT_EMPTY, INPUT_INVALID, INPUT_NO_OBJECT } verdict;
static int64_t limit_ms = ALL_MS;
static int64_t end_ms;

/* Output. An error's longest part is one variable, each byte of it \u00xx. */

static char output[6 * LONGEST_VALUE + 4096];
static size_t output_length;

static void put_byte(char byte)
{
    if (output_length < sizeof output)
        output[output_length++] = byte;
}

static void put(const char *text)
{
    while (*text != '\0')
        put_byte(*text++);
}

static void put_u16(unsigned unit)
{
    static const char digits[] = "0123456789abcdef";
    put("\\u");
    for (int shift = 12; shift >= 0; shift -= 4)
        put_byte(digits[unit >> shift & 15]);
}

/*
 * Return the length in bytes of the UTF-8 character at `at`, and its code
 * point, or 0 where there is none (RFC 3629; surrogates are none).
 */
static size_t decode_utf8(const char *at, size_t left, uint32_t *point)
{
    const unsigned char *byte = (const unsigned char *)at;
    if (left == 0)
        return 0;
    if (byte[0] < 0x80) {
        *point = byte[0];
        return 1;
    }
    size_t length = byte[0] >= 0xf0 ? 4 : byte[0] >= 0xe0 ? 3 : 2;
    if (byte[0] < 0xc2 || byte[0] > 0xf4 || length > left)
        return 0;
    uint32_t value = byte[0] & (0xffu >> (length + 1));
    for (size_t i = 1; i < length; i++) {
        if ((byte[i] & 0xc0) != 0x80)
            return 0;
        value = value << 6 | (byte[i] & 0x3fu);
    }
    static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    if (value < smallest[length] || value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff))
        return 0;
    *point = value;
    return length;
}

/* Put text into a JSON string, in ASCII; a byte that is not UTF-8 becomes \\xNN. */
static void put_escaped(const char *text)
{
    static const char digits[] = "0123456789abcdef";
    static const char plain[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";
    size_t left = strlen(text);
    while (left > 0) {
        uint32_t point = 0;
        size_t length = decode_utf8(text, left, &point);
        const char *found = point < 0x80 && point != 0 ? strchr(plain, (int)point) : NULL;
        if (length == 0) {
            unsigned byte = (unsigned char)*text;
            put("\\\\x");
            put_byte(digits[byte >> 4]);
            put_byte(digits[byte & 15]);
            length = 1;
        } else if (found != NULL) {
            put_byte('\\');
            put_byte(letters[found - plain]);
        } else if (point >= ' ' && point <= '~') {
            put_byte((char)point);
        } else if (point < 0x10000) {
            put_u16(point);
        } else {
            put_u16(0xd800 + ((point - 0x10000) >> 10));
            put_u16(0xdc00 + ((point - 0x10000) & 0x3ff));
        }
        text += length;
        left -= length;
    }
}

static _Noreturn void print_and_exit(const char *bytes, size_t length, int status)
{
    while (length > 0) {
        ssize_t written = write(STDOUT_FILENO, bytes, length);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            _exit(1);
        bytes += written;
        length -= (size_t)written;
    }
    _exit(status);
}

static int version_index(void)
{
    for (int i = 0; i < VERSION_COUNT; i++)
        if (cni_version.state == STRING && strcmp(cni_version.text, VERSIONS[i]) == 0)
            return i;
    return -1;
}

/* Answer in CNI's error form. What is wrong comes in pieces that end with NULL. */
__attribute__((sentinel)) static _Noreturn void fail(int code, const char *details, ...)
{
    int version = version_index();
    output_length = 0;
    put("{\"cniVersion\":\"");
    put(VERSIONS[version < 0 ? VERSION_COUNT - 1 : version]);
    put("\",\"code\":");
    if (code >= 10)
        put_byte((char)('0' + code / 10));
    put_byte((char)('0' + code % 10));
    put(",\"msg\":\"");
    va_list pieces;
    va_start(pieces, details);
    for (const char *piece; (piece = va_arg(pieces, const char *)) != NULL;)
        put_escaped(piece);
    va_end(pieces);
    put("\",\"details\":\"");
    put_escaped(details);
    put("\"}\n");
    print_and_exit(output, output_length, 1);
}

static _Noreturn void print_versions(void)
{
    bool is_there = cni_version.state == STRING && cni_version.length > 0;
    put("{\"cniVersion\":\"");
    put_escaped(is_there ? cni_version.text : VERSIONS[VERSION_COUNT - 1]);
    put("\",\"supportedVersions\":[");
    for (int i = 0; i < VERSION_COUNT; i++) {
        put(i > 0 ? ",\"" : "\"");
        put(VERSIONS[i]);
        put("\"");
    }
    put("]}\n");
    print_and_exit(output, output_length, 0);
}

/* Time, on a clock that nobody sets. */

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Return the moment by which something that begins now must be done. */
static int64_t within(int64_t ms)
{
    return smaller(end_ms, now_ms() + smaller(ms, limit_ms));
}

/* Wait until a descriptor is ready; return false when the time is over. */
static bool wait_for(int descriptor, short events, int64_t until)
{
    struct pollfd wanted = {.fd = descriptor, .events = events};
    for (;;) {
        int64_t left = until - now_ms();
        if (left <= 0)
            return false;
        int found = poll(&wanted, 1, (int)left);
        if (found >= 0 || errno != EINTR)
            return found != 0;
    }
}

/* JSON: strict as Python's decoder is, with RFC 8259's numbers alone; only FIELDS are kept. */

struct scanner {
    const char *at;
    const char *end;
};

static void skip_space(struct scanner *scan)
{
    while (scan->at < scan->end && *scan->at != '\0' && strchr(" \t\n\r", *scan->at) != NULL)
        scan->at++;
}

static bool take(struct scanner *scan, char byte)
{
    if (scan->at == scan->end || *scan->at != byte)
        return false;
    scan->at++;
    return true;
}

static bool take_word(struct scanner *scan, const char *word)
{
    size_t length = strlen(word);
    if ((size_t)(scan->end - scan->at) < length || memcmp(scan->at, word, length) != 0)
        return false;
    scan->at += length;
    return true;
}

/* A decoded string, as far as it fits. */
struct string {
    char *text;
    size_t room;
    size_t length;   /* as if all had fitted */
    bool is_unusable; /* has a null character or half a surrogate pair */
};

static void append(struct string *string, uint32_t point)
{
    unsigned char bytes[4];
    size_t length;
    if (point < 0x80) {
        bytes[0] = (unsigned char)point;
        length = 1;
    } else {
        length = point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
        for (size_t i = length - 1; i > 0; i--) {
            bytes[i] = (unsigned char)(0x80 | (point & 0x3f));
            point >>= 6;
        }
        bytes[0] = (unsigned char)(0xf00u >> length | point);
    }
    for (size_t i = 0; i < length; i++, string->length++)
        if (string->length < string->room)
            string->text[string->length] = (char)bytes[i];
}

static bool scan_unit(struct scanner *scan, uint32_t *unit)
{
    *unit = 0;
    for (int i = 0; i < 4; i++) {
        if (scan->at == scan->end)
            return false;
        char digit = *scan->at++;
        unsigned value;
        if (digit >= '0' && digit <= '9')
            value = (unsigned)(digit - '0');
        else if (digit >= 'a' && digit <= 'f')
            value = (unsigned)(digit - 'a') + 10;
        else if (digit >= 'A' && digit <= 'F')
            value = (unsigned)(digit - 'A') + 10;
        else
            return false;
        *unit = *unit << 4 | value;
    }
    return true;
}

/* Scan what follows a backslash. */
static bool scan_escape(struct scanner *scan, struct string *string)
{
    static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    if (scan->at == scan->end)
        return false;
    char letter = *scan->at++;
    if (letter != 'u') {
        const char *found = letter != '\0' ? strchr(letters, letter) : NULL;
        if (found == NULL)
            return false;
        append(string, (unsigned char)meanings[found - letters]);
        return true;
    }
    uint32_t point = 0;
    if (!scan_unit(scan, &point))
        return false;
    if (point >= 0xd800 && point <= 0xdbff) {
        struct scanner next = *scan;
        uint32_t low = 0;
        if (take_word(&next, "\\u") && scan_unit(&next, &low) && low >= 0xdc00 && low <= 0xdfff) {
            *scan = next;
            append(string, 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00));
            return true;
        }
    }
    if (point == 0 || (point >= 0xd800 && point <= 0xdfff))
        string->is_unusable = true;
    append(string, point);
    return true;
}

/* Scan a string from behind its first quote. */
static bool scan_string(struct scanner *scan, struct string *string)
{
    while (scan->at < scan->end) {
        unsigned char byte = (unsigned char)*scan->at;
        uint32_t point = 0;
        if (byte == '"') {
            scan->at++;
            return true;
        }
        if (byte == '\\') {
            scan->at++;
            if (!scan_escape(scan, string))
                return false;
            continue;
        }
        size_t length = decode_utf8(scan->at, (size_t)(scan->end - scan->at), &point);
        if (length == 0 || byte < 0x20)
            return false;
        append(string, point);
        scan->at += length;
    }
    return false;
}

static bool scan_digits(struct scanner *scan)
{
    const char *start = scan->at;
    while (scan->at < scan->end && *scan->at >= '0' && *scan->at <= '9')
        scan->at++;
    return scan->at > start;
}

static bool scan_number(struct scanner *scan)
{
    take(scan, '-');
    if (!take(scan, '0') && !scan_digits(scan))
        return false;
    if (take(scan, '.') && !scan_digits(scan))
        return false;
    if (take(scan, 'e') || take(scan, 'E')) {
        if (!take(scan, '+'))
            take(scan, '-');
        return scan_digits(scan);
    }
    return true;
}

static bool scan_value(struct scanner *scan, int depth, struct field *field);

static struct field *find_field(const struct string *key)
{
    for (size_t i = 0; i < FIELD_COUNT; i++)
        if (!key->is_unusable && key->length == strlen(FIELDS[i]->key) &&
            memcmp(key->text, FIELDS[i]->key, key->length) == 0)
            return FIELDS[i];
    return NULL;
}

static bool scan_object(struct scanner *scan, int depth)
{
    skip_space(scan);
    if (take(scan, '}'))
        return true;
    do {
        char text[LONGEST_KEY];
        struct string key = {.text = text, .room = sizeof text};
        skip_space(scan);
        if (!take(scan, '"') || !scan_string(scan, &key))
            return false;
        skip_space(scan);
        if (!take(scan, ':'))
            return false;
        if (!scan_value(scan, depth, depth == 1 ? find_field(&key) : NULL))
            return false;
        skip_space(scan);
    } while (take(scan, ','));
    return take(scan, '}');
}

static bool scan_array(struct scanner *scan, int depth)
{
    skip_space(scan);
    if (take(scan, ']'))
        return true;
    do {
        if (!scan_value(scan, depth, NULL))
            return false;
        skip_space(scan);
    } while (take(scan, ','));
    return take(scan, ']');
}

/* Scan a string and keep it in `field` if there is one; of equal keys the last one counts. */
static bool scan_field(struct scanner *scan, struct field *field)
{
    struct string string = {.text = NULL};
    if (field != NULL) {
        string.text = field->text;
        string.room = field->longest;
    }
    if (!scan_string(scan, &string))
        return false;
    if (field != NULL) {
        bool fits = string.length <= field->longest && !string.is_unusable;
        field->state = fits ? STRING : UNUSABLE;
        field->length = fits ? string.length : 0;
        field->text[field->length] = '\0';
    }
    return true;
}

static bool scan_value(struct scanner *scan, int depth, struct field *field)
{
    skip_space(scan);
    if (take(scan, '"'))
        return scan_field(scan, field);
    if (field != NULL)
        field->state = UNUSABLE;
    if (take_word(scan, "null")) {
        if (field != NULL)
            field->state = ABSENT;
        return true;
    }
    if (take_word(scan, "true") || take_word(scan, "false"))
        return true;
    bool is_object = take(scan, '{');
    if (is_object || take(scan, '['))
        return depth < DEEPEST &&
               (is_object ? scan_object(scan, depth + 1) : scan_array(scan, depth + 1));
    return scan_number(scan);
}

static void parse_input(void)
{
    struct scanner scan = {.at = input, .end = input + input_length};
    verdict = INPUT_FINE;
    if (input_length > LONGEST_INPUT) {
        verdict = INPUT_TOO_LONG;
        return;
    }
    if (input_length == 0) {
        verdict = INPUT_EMPTY;
        return;
    }
    skip_space(&scan);
    bool is_object = scan.at < scan.end && *scan.at == '{';
    bool is_valid = scan_value(&scan, 0, NULL);
    skip_space(&scan);
    if (!is_valid || scan.at != scan.end)
        verdict = INPUT_INVALID;
    else if (!is_object)
        verdict = INPUT_NO_OBJECT;
    if (verdict != INPUT_FINE)
        for (size_t i = 0; i < FIELD_COUNT; i++)
            FIELDS[i]->state = ABSENT;
}

/*
 * Read and parse standard input. Return 1 where it ended in time or is too
 * long, 0 where it did not end, -1 with errno where it cannot be read.
 */
static int read_input(int64_t until)
{
    bool ended = false;
    while (input_length <= LONGEST_INPUT && !ended) {
        if (!wait_for(STDIN_FILENO, POLLIN, until))
            break;
        ssize_t got = read(STDIN_FILENO, input + input_length, sizeof input - input_length);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -1;
        input_length += (size_t)got;
        ended = got == 0;
    }
    parse_input();
    return ended || input_length > LONGEST_INPUT;
}

/* Checks. */

static bool is_alnum(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool is_plain_name(const char *text)
{
    if (!is_alnum(*text))
        return false;
    while (is_alnum(*text) || (*text != '\0' && strchr("_.-", *text) != NULL))
        text++;
    return *text == '\0';
}

/* Fail for the first variable that is missing or cannot be right. */
static void check_variables(void)
{
    for (int i = 0; i < VARIABLES; i++)
        if (strlen(values[i]) > LONGEST_VALUE)
            fail(BAD_VARIABLE, "no CNI variable may be longer", NAMES[i],
                 " is longer than 4096 bytes", NULL);
    for (int i = 0; i < VARIABLES; i++)
        if ((command->needs >> i & 1) != 0 && *values[i] == '\0')
            fail(BAD_VARIABLE, command->needs_text, NAMES[i], " is not set", NULL);
    if ((command->needs >> CONTAINERID & 1) == 0)
        return;
    if (!is_plain_name(values[CONTAINERID]))
        fail(BAD_VARIABLE, NAMING, "CNI_CONTAINERID: ", values[CONTAINERID],
             " is not a container id", NULL);
    /* "%" is for the kernel a pattern, from which it makes another name. */
    const char *text = values[IFNAME];
    if (strlen(text) > LONGEST_IFNAME || strpbrk(text, "/:% \t\n\v\f\r") != NULL ||
        strcmp(text, ".") == 0 || strcmp(text, "..") == 0)
        fail(BAD_VARIABLE,
             "it has at most 15 bytes, no \"/\", \":\", \"%\" or white space, and is not "
             "\".\" or \"..\"",
             "CNI_IFNAME: ", text, " is not an interface name", NULL);
}

/* Return whether a field is there; fail where it is no string that can be used. */
static bool has(const struct field *field)
{
    static const char why[] = "nor may it hold a null character or half a surrogate pair";
    if (field->state == UNUSABLE)
        fail(BAD_CONFIG, why, "\"", field->key, "\" is not a string of at most ",
             field->longest == LONGEST_VERSION ? "64"
             : field->longest == LONGEST_PATH  ? "107"
                                               : "255",
             " bytes", NULL);
    return field->state == STRING && field->length > 0;
}

static void check_version(void)
{
    static const char spoken[] = "this plugin speaks 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0";
    if (!has(&cni_version))
        fail(UNSUPPORTED, spoken, "cniVersion is not set: that means 0.1.0, not supported", NULL);
    int version = version_index();
    if (version < 0)
        fail(UNSUPPORTED, spoken, "cniVersion ", cni_version.text, " is not supported", NULL);
    if ((unsigned)version < command->since)
        fail(UNSUPPORTED, command->since == 2 ? "it came with 0.4.0" : "it came with 1.1.0",
             command->name, " is not in cniVersion ", cni_version.text, NULL);
}

/* Return the path of the agent's socket; fail where the configuration cannot be right. */
static const char *check_config(void)
{
    static const char always[] = "every network configuration has it";
    switch (verdict) {
    case INPUT_TOO_LONG:
        fail(UNDECODABLE, "the agent takes no longer one",
             "the network configuration is longer than 1048576 bytes", NULL);
    case INPUT_EMPTY:
        fail(UNDECODABLE, JSON, "standard input is empty", NULL);
    case INPUT_INVALID:
        fail(UNDECODABLE, JSON, "the network configuration is not valid JSON", NULL);
    case INPUT_NO_OBJECT:
        fail(BAD_CONFIG, JSON, "the network configuration is not a JSON object", NULL);
    case INPUT_FINE:
        break;
    }
    check_version();
    if (!has(&name))
        fail(BAD_CONFIG, always, "\"name\" is not set", NULL);
    if (!is_plain_name(name.text))
        fail(BAD_CONFIG, NAMING, "\"name\" is not a network name", NULL);
    if (!has(&type))
        fail(BAD_CONFIG, always, "\"type\" is not set", NULL);
    if (!has(&socket_path))
        return DEFAULT_SOCKET;
    if (socket_path.text[0] != '/')
        fail(BAD_CONFIG, "it names the unix socket of the node's agent",
             "\"socket\" is not an absolute path", NULL);
    return socket_path.text;
}

/*
 * Return a descriptor of the pod's namespace, or -1 where the command does
 * without. ADD and CHECK fail where the path leads to no network namespace, or
 * to the one that this process is in. DEL must work without.
 */
static int open_netns(void)
{
    const char *path = values[NETNS], *colon = "", *reason = NULL;
    bool is_del = strcmp(command->name, "DEL") == 0;
    if (*path == '\0' || (command->needs >> CONTAINERID & 1) == 0)
        return -1;
    /* Without O_NONBLOCK a path that is a FIFO would hang. */
    int netns = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    struct statfs system;
    struct stat theirs, own;
    if (netns < 0 || fstatfs(netns, &system) < 0 || fstat(netns, &theirs) < 0 ||
        stat("/proc/self/ns/net", &own) < 0) {
        colon = ": ";
        reason = strerror(errno);
    } else if ((unsigned long)system.f_type != NSFS_MAGIC_NUMBER ||
               ioctl(netns, NS_GET_NSTYPE_REQUEST) != CLONE_NEWNET) {
        reason = " is not a network namespace";
    } else if (theirs.st_dev == own.st_dev && theirs.st_ino == own.st_ino) {
        reason = " is the host's own network namespace";
    }
    if (reason == NULL)
        return netns;
    if (is_del)
        return -1;
    fail(BAD_VARIABLE, "it must be the path of the pod's network namespace",
         "CNI_NETNS: ", path, colon, reason, NULL);
}

/*
 * Return the namespace, a netlink socket and the sysctls of it; fewer
 * where that fails. An agent in a container may not enter by itself. This
 * process stays inside: the agent's socket is a path, the same from everywhere.
 */
static struct descriptors open_inside(int netns)
{
    struct descriptors found = {.count = netns >= 0 ? 1 : 0, .of = {[OF_NETNS] = netns}};
    if (netns < 0 || strcmp(command->name, "DEL") == 0 || setns(netns, CLONE_NEWNET) < 0)
        return found;
    found.of[OF_RTNL] = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, ROUTE_PROTOCOL);
    if (found.of[OF_RTNL] < 0)
        return found;
    found.of[OF_SYSCTLS] = open("/proc/sys/net/ipv6/conf", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    found.count = found.of[OF_SYSCTLS] < 0 ? OF_SYSCTLS : DESCRIPTORS;
    return found;
}

/* The agent. */

/* Fail because no answer comes; STATUS has a code of its own. */
static _Noreturn void fail_away(int code, const char *path, const char *what, const char *reason)
{
    bool is_status = strcmp(command->name, "STATUS") == 0;
    fail(is_status ? UNAVAILABLE : code, AGENT, "the agent on ", path, " ", what, reason, NULL);
}

/* Return a connection to the agent, after a wait for one that is being restarted. */
static int connect_agent(const char *path)
{
    bool is_status = strcmp(command->name, "STATUS") == 0;
    int64_t until = within(is_status ? STATUS_CONNECT_MS : CONNECT_MS);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, path, strlen(path) + 1);
    /* Without SOCK_NONBLOCK a full queue (EAGAIN) would be waited for without end. */
    int agent = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (agent < 0)
        fail_away(IO_FAILURE, path, "cannot be reached: ", strerror(errno));
    while (connect(agent, (const struct sockaddr *)&address, sizeof address) < 0) {
        if (errno != ENOENT && errno != ECONNREFUSED && errno != EAGAIN && errno != EINTR)
            fail_away(IO_FAILURE, path, "cannot be reached: ", strerror(errno));
        if (now_ms() >= until)
            fail_away(TRY_LATER, path, "cannot be reached: ", strerror(errno));
        nanosleep(&(struct timespec){.tv_nsec = RETRY_MS * 1000000L}, NULL);
    }
    return agent;
}

static void put_u32(unsigned char *at, size_t number)
{
    for (int i = 0; i < 4; i++)
        at[i] = (unsigned char)(number >> (8 * i) & 0xff);
}

static size_t get_u32(const unsigned char *at)
{
    return (size_t)at[0] | (size_t)at[1] << 8 | (size_t)at[2] << 16 | (size_t)at[3] << 24;
}

enum { PIECES = 1 + 4 * VARIABLES + 1 };

/* Lay out the request in pieces, none of them copied; return their number. */
static int lay_out(struct iovec *pieces, unsigned char *header, int descriptors)
{
    static char equals[] = "=";
    size_t length = 0;
    int count = 1;
    for (int i = 0; i < VARIABLES; i++) {
        if (*values[i] == '\0')
            continue;
        pieces[count++] = (struct iovec){(void *)(uintptr_t)NAMES[i], strlen(NAMES[i])};
        pieces[count++] = (struct iovec){equals, 1};
        pieces[count++] = (struct iovec){(void *)(uintptr_t)values[i], strlen(values[i]) + 1};
        length += strlen(NAMES[i]) + 1 + strlen(values[i]) + 1;
    }
    memcpy(header, MAGIC, 4);
    put_u32(header + 4, (1u << descriptors) - 1);
    put_u32(header + 8, length);
    put_u32(header + 12, input_length);
    pieces[0] = (struct iovec){header, HEADER};
    pieces[count++] = (struct iovec){input, input_length};
    return count;
}

/* Send the request. An agent that refuses early may have said why, so that is no failure. */
static void send_request(int agent, struct descriptors passed, const char *path)
{
    unsigned char header[HEADER];
    struct iovec pieces[PIECES];
    union {
        struct cmsghdr header; /* for its alignment */
        char bytes[CMSG_SPACE(sizeof passed.of)];
    } control;
    struct msghdr message = {.msg_iov = pieces};
    int count = lay_out(pieces, header, passed.count), first = 0;
    if (passed.count > 0) {
        size_t length = (size_t)passed.count * sizeof passed.of[0];
        memset(&control, 0, sizeof control);
        message.msg_control = control.bytes;
        message.msg_controllen = (__typeof__(message.msg_controllen))CMSG_SPACE(length);
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = (__typeof__(rights->cmsg_len))CMSG_LEN(length);
        memcpy(CMSG_DATA(rights), passed.of, length);
    }
    while (first < count) {
        message.msg_iov = pieces + first;
        message.msg_iovlen = (__typeof__(message.msg_iovlen))(count - first);
        ssize_t sent = sendmsg(agent, &message, MSG_NOSIGNAL);
        if (sent < 0 && (errno == EPIPE || errno == ECONNRESET))
            return;
        if (sent < 0 && errno == EAGAIN) {
            if (!wait_for(agent, POLLOUT, end_ms))
                fail_away(TRY_LATER, path, "did not answer in time", "");
            continue;
        }
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            fail_away(TRY_LATER, path, "went away: ", strerror(errno));
        message.msg_control = NULL;
        message.msg_controllen = 0;
        for (size_t left = (size_t)sent; first < count; first++) {
            size_t done = left < pieces[first].iov_len ? left : pieces[first].iov_len;
            pieces[first].iov_base = (char *)pieces[first].iov_base + done;
            pieces[first].iov_len -= done;
            left -= done;
            if (pieces[first].iov_len > 0)
                break;
        }
    }
    shutdown(agent, SHUT_WR);
}

/* Receive `length` bytes; return their number, smaller where the connection ends before. */
static size_t receive(int agent, void *buffer, size_t length, const char *path)
{
    size_t done = 0;
    while (done < length) {
        if (!wait_for(agent, POLLIN, end_ms))
            fail_away(TRY_LATER, path, "did not answer in time", "");
        ssize_t got = recv(agent, (char *)buffer + done, length - done, 0);
        if (got < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (got == 0 || (got < 0 && errno == ECONNRESET))
            break;
        if (got < 0)
            fail_away(TRY_LATER, path, "went away: ", strerror(errno));
        done += (size_t)got;
    }
    return done;
}

/*
 * Print what the agent answers. A request is sent once: one that was cut off
 * may have been carried out.
 */
static _Noreturn void ask(struct descriptors passed, const char *path)
{
    static char answer[LONGEST_ANSWER];
    unsigned char header[ANSWER_HEADER] = {0};
    int agent = connect_agent(path);
    send_request(agent, passed, path);
    size_t got = receive(agent, header, sizeof header, path);
    bool is_ours = memcmp(header, MAGIC, got < 4 ? got : 4) == 0;
    if (is_ours && got < sizeof header)
        fail_away(TRY_LATER, path, "closed the connection without an answer", "");
    size_t status = get_u32(header + 4), length = get_u32(header + 8);
    if (!is_ours || status > 1 || length > LONGEST_ANSWER)
        fail_away(IO_FAILURE, path, "does not speak version 1 of this protocol", "");
    if (receive(agent, answer, length, path) < length)
        fail_away(TRY_LATER, path, "closed the connection in the middle of its answer", "");
    print_and_exit(answer, length, (int)status);
}

static void read_environment(void)
{
    for (int i = 0; i < VARIABLES; i++) {
        const char *value = getenv(NAMES[i]);
        values[i] = value != NULL ? value : "";
    }
    for (size_t i = 0; i < sizeof COMMANDS / sizeof COMMANDS[0]; i++)
        if (strcmp(values[COMMAND], COMMANDS[i].name) == 0)
            command = &COMMANDS[i];
    const char *limit = getenv("OVERLAY_CNI_TIMEOUT_MS");
    size_t digits = limit != NULL ? strspn(limit, "0123456789") : 0;
    if (digits > 0 && digits <= 6 && limit[digits] == '\0')
        limit_ms = strtol(limit, NULL, 10);
    bool is_status = strcmp(values[COMMAND], "STATUS") == 0;
    end_ms = now_ms() + smaller(is_status ? STATUS_ALL_MS : ALL_MS, limit_ms);
}

int main(void)
{
    static const char commands[] = "it is one of ADD, DEL, CHECK, GC, STATUS, VERSION";
    signal(SIGPIPE, SIG_IGN);
    read_environment();
    if (command == NULL) {
        const char *given = values[COMMAND];
        (void)read_input(within(GLANCE_MS));
        if (strcmp(given, "VERSION") == 0)
            print_versions();
        if (*given == '\0')
            fail(BAD_VARIABLE, commands, "CNI_COMMAND is not set", NULL);
        fail(BAD_VARIABLE, commands, "CNI_COMMAND: unknown command ", given, NULL);
    }
    int ended = read_input(within(INPUT_MS));
    if (ended < 0)
        fail(IO_FAILURE, JSON, "standard input: ", strerror(errno), NULL);
    check_variables();
    if (ended == 0)
        fail(IO_FAILURE, "the runtime closes it after the network configuration",
             "standard input did not end in time", NULL);
    const char *path = check_config();
    ask(open_inside(open_netns()), path);
}

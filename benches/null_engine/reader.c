// Reads answers, and does nothing else, so that it is not what limits them.
//
//    reader PORT streams COUNT BODY   so many at once; BODY: the JSON of a request to /v1/completions
//    reader PORT chats COUNT BODY     one after the other on one connection; to /v1/chat/completions, not streamed
//
// Prints one line of JSON. Of streams: seconds from the first byte of an answer to the end of the last one,
// bytes, events, and streams that did not end with [DONE]. Of chats: seconds from the first request to the end
// of the last answer. Linux: it uses epoll.

#define _GNU_SOURCE // strcasestr

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 1 << 16, TAIL = 32 };

typedef struct Stream {
   int    socket;
   size_t matched; // of "data: ", at the end of what was read
   char   tail[TAIL]; // the last bytes of the answer
} Stream;

static void die(const char *what) {
   perror(what);
   exit(1);
}

static double now(void) {
   struct timespec time;
   clock_gettime(CLOCK_MONOTONIC, &time);
   return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static long events_in(Stream *stream, const char *data, size_t length) {
   static const char mark[] = "data: ";
   long              events = 0;
   for (size_t i = 0; i < length; i++) {
      if (stream->matched == 0) {
         const char *found = memchr(data + i, mark[0], length - i);
         if (found == NULL) {
            break;
         }
         i = (size_t)(found - data);
      }
      stream->matched = data[i] == mark[stream->matched] ? stream->matched + 1 : data[i] == mark[0];
      if (mark[stream->matched] == 0) {
         events++;
         stream->matched = 0;
      }
   }
   return events;
}

static void keep_tail(Stream *stream, const char *data, size_t length) {
   if (length >= TAIL) {
      memcpy(stream->tail, data + length - TAIL, TAIL);
   } else {
      memmove(stream->tail, stream->tail + length, TAIL - length);
      memcpy(stream->tail + TAIL - length, data, length);
   }
}

static int connected(unsigned short port) {
   struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
   address.sin_addr.s_addr    = htonl(INADDR_LOOPBACK);
   int found                  = socket(AF_INET, SOCK_STREAM, 0);
   if (found < 0 || connect(found, (struct sockaddr *)&address, sizeof address) != 0) {
      die("connect");
   }
   return found;
}

static void send_all(int to, const char *request) {
   size_t length = strlen(request);
   if (send(to, request, length, 0) != (ssize_t)length) {
      die("send");
   }
}

static char *request_for(const char *path, const char *connection, const char *body) {
   size_t room    = strlen(body) + 256;
   char  *request = malloc(room);
   if (request == NULL) {
      die("set-up");
   }
   snprintf(request, room,
            "POST %s HTTP/1.1\r\nHost: localhost\r\nConnection: %s\r\n"
            "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
            path, connection, strlen(body), body);
   return request;
}

// One whole answer, which tells its length; 0: it is none, or tells of an error.
static int answered(int from) {
   static char buffer[BUFFER];
   size_t      have = 0;
   for (;;) {
      ssize_t got = recv(from, buffer + have, sizeof buffer - 1 - have, 0);
      if (got <= 0) {
         return 0;
      }
      have += (size_t)got;
      buffer[have]     = 0;
      const char *end  = strstr(buffer, "\r\n\r\n");
      const char *told = strcasestr(buffer, "\r\nContent-Length:");
      if (end == NULL) {
         continue;
      }
      if (told == NULL || told > end || strncmp(buffer, "HTTP/1.1 200", 12) != 0) {
         return 0;
      }
      if (have >= (size_t)(end + 4 - buffer) + strtoul(strchr(told, ':') + 1, NULL, 10)) {
         return 1;
      }
   }
}

static int chats(unsigned short port, int n, const char *body) {
   char  *request    = request_for("/v1/chat/completions", "keep-alive", body);
   int    connection = connected(port);
   double began      = now();
   int    broken     = 0;
   for (int i = 0; i < n && broken == 0; i++) {
      send_all(connection, request);
      broken = !answered(connection);
   }
   printf("{\"seconds\": %.6f, \"broken\": %d}\n", now() - began, broken);
   return broken;
}

static int streams(unsigned short port, const char *path, int n, const char *body) {
   char       *request = request_for(path, "close", body);
   Stream     *streams = calloc((size_t)n, sizeof *streams);
   static char buffer[BUFFER];
   int         poll = epoll_create1(0);
   if (streams == NULL || poll < 0) {
      die("set-up");
   }
   for (int i = 0; i < n; i++) {
      streams[i].socket         = connected(port);
      struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = &streams[i]};
      send_all(streams[i].socket, request);
      if (epoll_ctl(poll, EPOLL_CTL_ADD, streams[i].socket, &wanted) != 0) {
         die("epoll");
      }
   }
   double began = 0;
   long   bytes = 0, events = 0, broken = 0, reads = 0;
   for (int open = n; open > 0;) {
      struct epoll_event ready[256];
      int                count = epoll_wait(poll, ready, 256, -1);
      for (int i = 0; i < count; i++) {
         Stream *stream = ready[i].data.ptr;
         ssize_t got    = recv(stream->socket, buffer, sizeof buffer, 0);
         if (got > 0) {
            began = began == 0 ? now() : began;
            bytes += got;
            reads++;
            events += events_in(stream, buffer, (size_t)got);
            keep_tail(stream, buffer, (size_t)got);
            continue;
         }
         static const char end[] = "[DONE]\n\n\r\n0\r\n\r\n";
         broken += memcmp(stream->tail + TAIL - (sizeof end - 1), end, sizeof end - 1) != 0;
         close(stream->socket);
         open--;
      }
   }
   printf("{\"seconds\": %.6f, \"bytes\": %ld, \"events\": %ld, \"reads\": %ld, \"broken\": %ld}\n", now() - began,
          bytes, events, reads, broken);
   return broken == 0 ? 0 : 1;
}

int main(int argc, char **argv) {
   if (argc == 5) {
      unsigned short port = (unsigned short)atoi(argv[1]);
      if (strcmp(argv[2], "streams") == 0) {
         return streams(port, "/v1/completions", atoi(argv[3]), argv[4]);
      }
      if (strcmp(argv[2], "chat-streams") == 0) {
         return streams(port, "/v1/chat/completions", atoi(argv[3]), argv[4]);
      }
      if (strcmp(argv[2], "chats") == 0) {
         return chats(port, atoi(argv[3]), argv[4]);
      }
   }
   fprintf(stderr, "usage: reader PORT streams|chat-streams|chats COUNT BODY\n");
   return 2;
}

// Reads many streams at once, and does nothing else, so that it is not what limits them.
//
//    reader PORT STREAMS BODY      BODY: the JSON of a request to /v1/completions
//
// Prints one line of JSON: seconds from the first byte of an answer to the end of the last one, bytes,
// events, and streams that did not end with [DONE]. Linux: it uses epoll.

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

int main(int argc, char **argv) {
   if (argc != 4) {
      fprintf(stderr, "usage: reader PORT STREAMS BODY\n");
      return 2;
   }
   struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[1]))};
   address.sin_addr.s_addr    = htonl(INADDR_LOOPBACK);
   int         n              = atoi(argv[2]);
   size_t      room           = strlen(argv[3]) + 256;
   char       *request        = malloc(room);
   Stream     *streams        = calloc((size_t)n, sizeof *streams);
   static char buffer[BUFFER];
   int         poll = epoll_create1(0);
   if (request == NULL || streams == NULL || poll < 0) {
      die("set-up");
   }
   int length = snprintf(request, room,
                         "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                         "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                         strlen(argv[3]), argv[3]);
   for (int i = 0; i < n; i++) {
      streams[i].socket         = socket(AF_INET, SOCK_STREAM, 0);
      struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = &streams[i]};
      if (streams[i].socket < 0 || connect(streams[i].socket, (struct sockaddr *)&address, sizeof address) != 0 ||
          send(streams[i].socket, request, (size_t)length, 0) != length ||
          epoll_ctl(poll, EPOLL_CTL_ADD, streams[i].socket, &wanted) != 0) {
         die("connect");
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

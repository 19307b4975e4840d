/* usage FILE COMMAND [ARG...]: runs COMMAND and writes to FILE its peak memory in KiB and its
 * processor time in microseconds. It is small itself, as the kernel counts the peak of whoever
 * starts a program to that program's. */
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc < 3)
        return 2;
    pid_t child = fork();
    if (child == 0) {
        execvp(argv[2], argv + 2);
        _exit(127);
    }
    int status = 0;
    struct rusage usage;
    if (child < 0 || wait4(child, &status, 0, &usage) < 0)
        return 1;
    FILE *file = fopen(argv[1], "w");
    if (!file)
        return 1;
    long seconds = usage.ru_utime.tv_sec + usage.ru_stime.tv_sec;
    long microseconds = seconds * 1000000 + usage.ru_utime.tv_usec + usage.ru_stime.tv_usec;
    fprintf(file, "%ld %ld\n", usage.ru_maxrss, microseconds);
    fclose(file);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

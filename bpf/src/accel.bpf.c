// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Redirects bytes between two sockets of one node. docs/architecture.md has the protocol. */
#include "core.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "wire.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#include "accel/maps.bpf.h"
#include "accel/track.bpf.h"
#include "accel/wait.bpf.h"
#include "accel/psock.bpf.h"
#include "accel/reader.bpf.h"
#include "accel/observe.bpf.h"
#include "accel/memory.bpf.h"
#include "accel/reinject.bpf.h"
#include "accel/verdict.bpf.h"
#include "accel/insert.bpf.h"
#include "accel/sleeper.bpf.h"

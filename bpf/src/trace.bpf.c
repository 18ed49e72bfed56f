// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Watches the packets of one pair of pods. One file for each subject; this one joins them. */
#include "core.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "wire.h"

#include "trace/cast.bpf.h"
#include "trace/config.bpf.h"
#include "trace/headers.bpf.h"
#include "trace/emit.bpf.h"
#include "trace/filter.bpf.h"
#include "trace/track.bpf.h"
#include "trace/bypass.bpf.h"
#include "trace/departure.bpf.h"
#include "trace/device.bpf.h"
#include "trace/netfilter.bpf.h"
#include "trace/socket.bpf.h"
#include "trace/route.bpf.h"
#include "trace/drop.bpf.h"
#include "trace/incident.bpf.h"
#include "trace/function.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

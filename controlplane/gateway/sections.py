"""The fixed text of haproxy.cfg, section by section, with `$placeholders`. A dollar sign of HAProxy's is doubled.

Facts about HAProxy 2.8 that this relies on, each with a test on the real one: `json_query` sees only what is in the
buffer and takes the first of two equal keys; a backup server takes a request whose last other server refused the
connection; `timeout client` does not run while the client waits for an answer; `http-after-response` sees HAProxy's
own errors too.
"""

from string import Template
from typing import Final

GLOBAL: Final = Template("""\
# Written by Quarterdeck; changes made here are lost.
global
  description $description
  log stdout format raw daemon notice
  stats socket $admin_socket mode 600 level admin expose-fd listeners
  stats timeout 30s
  maxconn $connections_max
  nbthread $threads
  # A second gateway on the same port must fail, not share the traffic.
  noreuseport
  hard-stop-after $hard_stop_after
  spread-checks 20
  tune.bufsize $buffer_bytes

defaults
  mode http
  log global
  option httplog
  option dontlog-normal
  option dontlognull
  # A fresh connection for each request to a replica: an idle one may be closed by the engine just as the
  # next request goes out, and a POST that may have been read is never sent twice.
  option http-server-close
  option idle-close-on-response
  # Tokens go out as they come; without it the kernel may hold small ones back for 200 ms to fill a packet.
  option http-no-delay
  # A client that hangs up leaves the queue, and its generation is aborted.
  option abortonclose
  retry-on conn-failure
  retries $retries
  option redispatch 1
  timeout connect $connect_timeout
  timeout check $check_timeout
  timeout client $client_timeout
  timeout http-request $request_timeout
  timeout http-keep-alive $keep_alive_timeout
  timeout queue $queue_timeout
  # A held request may be silent while a replica wakes, then while it computes.
  timeout server $server_timeout
  http-error status 400 content-type application/json file $error_400_json
  http-error status 408 content-type application/json file $error_408_json
  http-error status 500 content-type application/json file $error_500_json
  http-error status 502 content-type application/json file $error_502_json
  http-error status 503 content-type application/json lf-string '$overloaded_format' hdr Retry-After $retry_after_s
  http-error status 504 content-type application/json file $error_504_json
""")

PUBLIC: Final = Template("""\

frontend public
  bind $bind
  option forwardfor
  http-request del-header $header_prefix -m beg
  http-request set-header X-Request-Id %[uuid()] unless { req.hdr(X-Request-Id),length gt 0 }
  http-request set-var(txn.request_id) req.hdr(X-Request-Id),bytes(0,128)
  http-after-response set-header X-Request-Id %[var(txn.request_id)]

  acl inference path $inference_paths
  acl listing path /v1/models
  acl single path_beg /v1/models/
  acl served path /health
  acl served path /v1/models
  acl served path_beg /v1/models/
  acl served path $inference_paths
  acl huge_headers req.hdrs,length gt $headers_bytes_max
  http-request return status 431 content-type application/json file $headers_json if huge_headers
  http-request return status 200 content-type application/json file $health_json if { path /health }
  http-request return status 404 content-type application/json lf-file $unknown_path_json unless served
  http-request return status 405 content-type application/json file $method_json hdr Allow POST if inference !METH_POST

  # How much of the body is here, and whether that is all of it.
  http-request wait-for-body time $request_timeout if inference
  http-request set-var(txn.here) req.body_len
  http-request set-var(txn.rest) req.body_size,sub(txn.here)
  acl chunked req.hdr(Transfer-Encoding) -m found
  acl nearly_full var(txn.here) -m int ge $buffer_sure_bytes
  http-request set-var(txn.whole) bool(true) if chunked !nearly_full
  http-request set-var(txn.whole) bool(true) if !chunked { var(txn.rest) -m int eq 0 }
  acl whole var(txn.whole) -m bool

  # Refusals. A caller that still sends would not read an early answer, so where the body is not all here
  # the activator reads the rest away before it answers.
  acl refused var(txn.refuse) -m found
  acl too_large req.hdr_val(Content-Length) gt $body_bytes_max
  http-request set-var(txn.refuse) int(413) if too_large
$access\
  acl as_413 var(txn.refuse) -m int eq 413
  http-request return status 413 content-type application/json file $too_large_json if as_413 whole
  http-request set-header $refuse_header %[var(txn.refuse)] if refused

  # What is served.
  http-request return status 200 content-type application/json file $models_json if listing !refused
  http-request set-var(txn.asked) path,regsub(^/v1/models/,),url_dec if single
  http-request set-var(txn.deployment) var(txn.asked),url_enc,map_str($models_map) if single !refused
  acl known var(txn.deployment) -m found
  http-request return status 200 content-type application/json lf-file $model_json if single known !refused
  http-request return status 404 content-type application/json lf-file $unknown_model_json if single !refused

  # The model, wherever it stands in what is here. What stays undecided goes the slow path, and so does a
  # body of unknown length, which is counted there.
  acl multipart req.hdr(Content-Type) -m beg -i multipart/
  http-request set-var(txn.slow) bool(true) if refused or multipart
  http-request set-var(txn.slow) bool(true) if chunked nearly_full
  acl slow var(txn.slow) -m bool
  http-request set-var(txn.asked) req.body,json_query('$$.model') unless slow
  http-request set-var(txn.deployment) var(txn.asked),url_enc,map_str($models_map) unless slow
  acl asked var(txn.asked) -m found
  # json_query shows 5 like "5", true like 1, and \u00f6 as one byte: the slow path knows better.
  acl unsure var(txn.asked) -m reg ^[-0-9] [^[:print:]]
  http-request return status 404 content-type application/json lf-file $unknown_model_json if asked whole !known !unsure
  http-request set-header $model_header %[var(txn.asked),url_enc] if known
  http-request track-sc0 var(txn.deployment) table arrivals if known
  http-request sc-inc-gpc0(0) if known
  http-after-response sc-inc-gpc1(0) if { status ge 500 }
  use_backend d_%[var(txn.deployment)] if known
  default_backend slow
""")

ACCESS: Final = Template("""\

  # Who asks, and whether again so soon. Only what is let through counts.
  http-request set-var(txn.key) http_auth_bearer
  http-request set-var(txn.key) req.hdr(x-api-key) unless { var(txn.key) -m found }
  http-request set-var(txn.tenant) var(txn.key),sha2(256),hex,map_str($keys_map)
  http-request unset-var(txn.key)
  http-request del-header Authorization
  http-request del-header x-api-key
  acl tenant var(txn.tenant) -m found
  http-request set-header $tenant_header %[var(txn.tenant)] if tenant
  http-request set-var(txn.refuse) int(401) if !refused !tenant
  http-request set-var(txn.limit) var(txn.tenant),map_str_int($limits_map) if inference tenant !refused
  acl limited var(txn.limit) -m found
  http-request track-sc1 var(txn.tenant) table tenants if limited
  http-request set-var(txn.over) sc1_gpc0_rate,sub(txn.limit) if limited
  http-request set-var(txn.retry) int(60),div(txn.limit),add(1) if limited
  http-request set-var(txn.refuse) int(429) if limited { var(txn.over) -m int ge 0 }
  http-request sc-inc-gpc0(1) if limited !refused
  acl as_401 var(txn.refuse) -m int eq 401
  acl as_429 var(txn.refuse) -m int eq 429
  http-request set-header $retry_after_header %[var(txn.retry)] if as_429
  http-request return status 401 content-type application/json file $no_key_json hdr WWW-Authenticate Bearer \
if as_401 whole
  http-request return status 429 content-type application/json file $too_often_json hdr Retry-After \
%[var(txn.retry)] if as_429 whole

""")

BEHIND: Final = Template("""\

# What the activator sends back: the model is in a header, the body is not looked at.
frontend internal
  bind unix@$internal_socket mode 600
  http-request set-var(txn.asked) req.hdr($model_header),url_dec
  http-request set-var(txn.deployment) var(txn.asked),url_enc,map_str($models_map)
  acl known var(txn.deployment) -m found
  acl arrival req.hdr($arrival_header) -m found
  http-request return status 404 content-type application/json lf-file $unknown_model_json unless known
  http-request return status 204 if { req.hdr($look_header) -m found }
  http-request track-sc0 var(txn.deployment) table arrivals if arrival
  http-request sc-inc-gpc0(0) if arrival
  http-after-response sc-inc-gpc1(0) if { status ge 500 }
  http-request del-header $arrival_header
  use_backend d_%[var(txn.deployment)]

frontend metrics
  bind 127.0.0.1:$metrics_port
  http-request use-service prometheus-exporter if { path /metrics }
  http-request return status 404 content-type application/json lf-file $unknown_path_json

# gpc0: requests that asked for the deployment; gpc1: 5xx that their callers saw.
backend arrivals
  stick-table type string len 64 size $counted_max store gpc0,gpc1

# gpc0: requests of the tenant that were let through.
backend tenants
  stick-table type string len 64 size $counted_max expire 2m store gpc0,gpc0_rate(60s)

backend slow
  http-error status 503 content-type application/json file $error_503_slow_json hdr Retry-After $retry_after_s
  server activator unix@$activator_socket
""")

DEPLOYMENT: Final = Template("""\

backend $backend
  balance leastconn
  option httpchk GET $health_path
  http-check expect status 200
  http-request set-header $deployment_header $deployment
  # Takes what no replica can: with none up, or when the last one refuses the connection.
  server hold unix@$activator_socket backup
  default-server inter $check_interval fastinter $check_fast downinter $check_fast fall 3 rise 1
  default-server observe layer4 error-limit 3 on-error mark-down
""")

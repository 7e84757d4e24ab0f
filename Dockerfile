# The gateway in a container: data in /data, config in /config, both mounted.
#   docker build -t unprompt . && docker run -p 127.0.0.1:8080:8080 -v unprompt:/data unprompt
FROM python:3.13-slim

COPY pyproject.toml README.md /src/
COPY gateway /src/gateway
RUN pip install --no-cache-dir /src && rm -rf /src \
    && useradd --system --uid 10001 --create-home unprompt \
    && mkdir -p /data /config && chown unprompt /data /config

# The default store is data/unprompt.db below the working directory: /data.
WORKDIR /
USER unprompt
VOLUME ["/data", "/config"]
EXPOSE 8080
HEALTHCHECK CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/healthz', timeout=3)"]

# Listening beyond loopback: /metrics then asks for the token in the variable that auth.admin_token_env names.
ENTRYPOINT ["unprompt"]
CMD ["serve", "--host", "0.0.0.0"]
